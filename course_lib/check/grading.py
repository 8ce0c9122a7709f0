"""Grading: runs learners' notebooks, each in a process of its own, and collects what they passed.

A notebook that crashes, never ends or takes all memory costs only itself. This isolates against
accidents, not against an attacker: see `course_lib.check.grading_fence`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import course_lib
from course_lib.check import CHAPTERS

__all__ = ["Grade", "Graded", "find_notebooks", "grade", "grade_notebook"]

SECONDS = 120.0
GIGABYTES = 2.0
CELL = 4  # a cell may take this part of a notebook's time
START = 300.0  # seconds within which the second process must have loaded torch
END = 5.0  # seconds for a process to be gone that says no more
LARGEST = 100 * 2**20  # bytes of a notebook
REPORTS = 10_000  # lines that are read from one notebook
FOLDERS = (
    *("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
    *("MPLCONFIGDIR", "IPYTHONDIR"),
)
SETTINGS = {
    "COURSE_PROGRESS": "off",
    "CUDA_VISIBLE_DEVICES": "",
    "MALLOC_ARENA_MAX": "2",  # each arena reserves memory, which counts against the limit
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class Grade:
    """How one exercise went.

    Args:
        chapter: of the exercise.
        exercise: name of the function.
        title: of the exercise.
        result: "passed", "failed", "not attempted" (an untouched stub), "not found" (no function
            of that name) or "error" (it could not be checked).
        message: one line on it.
        passed_cases: number of cases with the right answer.
        cases: number of cases of the check.
    """

    chapter: str
    exercise: str
    title: str
    result: str
    message: str
    passed_cases: int = 0
    cases: int = 0


@dataclass(frozen=True)
class Graded:
    """How one notebook went.

    Args:
        notebook: its path, as it was given.
        grades: one for every exercise of its chapter.
        notes: the cells that failed, one line each.
        trouble: why it could not be graded, or not in full; "" if it could.
        seconds: that it took.
    """

    notebook: str
    grades: list[Grade] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trouble: str = ""
    seconds: float = 0.0


def find_notebooks(names: Sequence[str]) -> list[str]:
    """The notebooks that are named, each once; patterns such as `*.ipynb` are resolved.

    Args:
        names: paths of files, or patterns, which the shell of Windows leaves to the program.

    Raises:
        FileNotFoundError: a name leads to no file.
    """
    found: dict[str, None] = {}
    for name in names:
        files = (
            [name] if os.path.isfile(name) else [*filter(os.path.isfile, sorted(glob.glob(name)))]
        )
        if not files:
            raise FileNotFoundError(f"there is no notebook {name!r}")
        found |= dict.fromkeys(files)
    return list(found)


def grade(
    notebooks: Sequence[str],
    *,
    chapter: str | None = None,
    timeout: float = SECONDS,
    memory: float = GIGABYTES,
) -> Iterator[Graded]:
    """Grade notebooks, one after another.

    Args:
        notebooks: their paths.
        chapter: a name of `CHAPTERS`; by default each notebook's own, which is the one that its
            metadata name (`course_lib.chapter`), or else those of which it has a function.
        timeout: seconds that a notebook may take, the loading of torch not counted. A cell that
            takes more than a quarter of it is interrupted, and the next goes on.
        memory: gigabytes (2^30 bytes) that a notebook may take beyond what Python and torch take
            before it begins.

    Yields:
        What is known of each notebook.

    Raises:
        ValueError: a limit is not positive, or there is no such chapter.
    """
    for name, value in (("timeout", timeout), ("memory", memory)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {value:g}")
    if chapter is not None and chapter not in CHAPTERS:
        raise ValueError(f"chapter must be one of {', '.join(CHAPTERS)}; got {chapter!r}")
    return (grade_notebook(n, chapter or "", timeout, memory) for n in notebooks)


def grade_notebook(notebook: str, chapter: str, timeout: float, memory: float) -> Graded:
    """Grade one notebook; see `grade`.

    Args:
        notebook: its path.
        chapter: a name of `CHAPTERS`, or "".
        timeout: in seconds.
        memory: in gigabytes.

    Returns:
        What is known of it, whatever happened.
    """
    start = time.monotonic()
    if os.path.isfile(notebook) and os.path.getsize(notebook) > LARGEST:
        return Graded(notebook, trouble=f"not read: larger than {LARGEST >> 20} MB")
    limits = [str(timeout / CELL), str(int(memory * 2**30))]
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        worker = _Worker([os.path.abspath(notebook), chapter, *limits], folder)
        try:
            trouble = worker.watch(timeout, memory)
        finally:
            worker.kill()
    grades = _grades(worker.reports, trouble)
    if not grades and not trouble:
        trouble = "no function of any exercise was found; --chapter names the chapter"
    notes = [r["note"] for r in worker.reports if "note" in r]
    return Graded(notebook, grades, notes, trouble, time.monotonic() - start)


def _grades(reports: list[dict[str, Any]], trouble: str) -> list[Grade]:
    """One grade for each exercise of the notebook's chapters, also of those not reported."""
    known = {(r["chapter"], r["exercise"]): Grade(**r) for r in reports if "exercise" in r}
    failed = next((r["note"] for r in reports if "note" in r), "")
    for key, found in known.items():  # a cell that failed may be why a function is missing
        if failed and found.result == "not found":
            known[key] = replace(found, message=f"{found.message}; {failed}")
    chapters: list[str] = next((r["chapters"] for r in reports[::-1] if r.get("chapters")), [])
    return [
        known.get((c, k.name), Grade(c, k.name, k.title, "error", trouble))
        for c in chapters
        for k in CHAPTERS[c]
    ]


class _Worker:
    """The second process, everything that it starts, and what it reports."""

    def __init__(self, arguments: list[str], folder: str):
        command = [sys.executable, "-m", "course_lib.check.grading_worker", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
        )
        self.top = psutil.Process(self.process.pid)
        self.family: set[psutil.Process] = {self.top}
        self.reports: list[dict[str, Any]] = []
        self.words = ""  # its last one that is no report: why it could not start
        self.news = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        """Take reports as they come; beyond a bound, drop them, so that a flood costs nothing."""
        assert self.process.stdout
        for line in iter(partial(self.process.stdout.readline, 2**16), b""):
            if len(self.reports) < REPORTS:
                try:
                    self.reports.append(dict(json.loads(line)))
                except (ValueError, TypeError):
                    self.words = line.decode(errors="replace").strip() or self.words
            self.news.set()
        self.news.set()

    def heard(self, word: str) -> Any:
        """What the reports say under a word, or None."""
        return next((r[word] for r in self.reports if word in r), None)

    def watch(self, timeout: float, memory: float) -> str:
        """Wait for the end; return why the process was not allowed to reach it, or ""."""
        begin, ready = time.monotonic(), False
        while not self.heard("done"):
            if self.process.poll() is not None or not self.reader.is_alive():
                self.reader.join(1.0)
                if not self.heard("done"):
                    return self._last_words()
                break
            if not ready and self.heard("ready"):
                begin, ready = time.monotonic(), True
            if time.monotonic() > begin + (timeout if ready else START):
                return f"stopped after {timeout if ready else START:g} s"
            if ready and self._memory() > self.heard("ready") + memory * 2**30:
                return f"stopped when it took more than {memory:g} GB of memory"
            self.news.wait(0.1)
            self.news.clear()
        return self.heard("trouble") or ""

    def _memory(self) -> int:
        """Bytes in memory of the process and all that it started, which is noted."""
        for member in tuple(self.family):
            with contextlib.suppress(psutil.Error):
                self.family |= set(member.children(recursive=True))
        total = 0
        for member in self.family:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        return total

    def _last_words(self) -> str:
        """Why the process ended by itself."""
        try:
            status = self.process.wait(END)
        except subprocess.TimeoutExpired:
            return "the notebook closed all open files, and the grader heard no more of it"
        if not self.heard("ready"):
            return f"the grader could not start Python: {self.words or f'exit status {status}'}"
        if status >= 0:
            return f"the notebook ended its process, with exit status {status}"
        name = (
            signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        )
        return f"the notebook crashed ({name})"

    def kill(self) -> None:
        """End the process and all that it started."""
        new = set(self.family)
        while new:  # what is suspended starts no more, so that none is missed
            for member in new:
                with contextlib.suppress(psutil.Error):
                    member.suspend()
            time.sleep(0.02)  # one that was being started is there by now
            seen = set(self.family)
            self._memory()
            new = self.family - seen
        for member in self.family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        if hasattr(os, "killpg"):  # also those whose parent was gone before it was seen
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(1.0)


def _environment(folder: str) -> dict[str, str]:
    """The grader's variables; what leads to its own folders leads to the temporary one."""
    environment = {**os.environ, **SETTINGS, **dict.fromkeys(FOLDERS, folder)}
    environment["PYTHONUSERBASE"] = site.getuserbase()  # packages stay where they are
    home = Path(course_lib.__file__).parents[1]
    if home.name not in ("site-packages", "dist-packages"):  # a copy of the repository
        places = [str(home), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    if environment.get("COURSE_DATA_DIR"):
        environment["COURSE_DATA_DIR"] = os.path.abspath(environment["COURSE_DATA_DIR"])
    return environment
