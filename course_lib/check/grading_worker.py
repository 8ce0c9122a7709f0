"""The grader's second process: runs one notebook, checks its functions, reports line by line.

Started by `course_lib.check.grading` as a module, inside of a temporary folder. What it finds
out goes to standard output as lines of JSON, each as soon as it is known, so that a notebook which
brings the process down costs only what was still to come. What the notebook prints goes nowhere.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import json
import linecache
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from course_lib.check import CHAPTERS
from course_lib.check.checker import Checker
from course_lib.check.grading_fence import fence, limit_memory

__all__ = ["main", "read_notebook", "run_cells", "without_magics"]

Report = Callable[..., None]
RESULTS = {"passed": "passed", "failed": "failed", "todo": "not attempted"}
# `%name`, `!command`, `?name`, `x = !command`, `name?`
MAGIC = re.compile(r"^([ \t]*)(?:[%!?]|[\w., ]+=\s*[%!]|[\w.]+\?{1,2}[ \t]*$).*$", re.MULTILINE)
KEEPS_BODY = ("%%time", "%%timeit", "%%capture", "%%prun")


def main(argv: list[str]) -> None:
    """Grade one notebook.

    Args:
        argv: path of the notebook, name of the chapter or "", seconds that a cell may take, bytes
            of memory that the notebook may take.
    """
    path, chapter, seconds, memory = argv
    report = _reports()
    try:
        cells, named = read_notebook(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        report(trouble=f"not read: {error}", done=True)
        return
    chapters = [name for name in (chapter, named) if name in CHAPTERS][:1]
    report(ready=psutil.Process().memory_info().rss, chapters=chapters)
    fence(Path.cwd())
    limit_memory(int(memory))
    namespace = run_cells(cells, float(seconds), report)
    chapters = chapters or [c for c in CHAPTERS if any(_found(k, namespace) for k in CHAPTERS[c])]
    report(chapters=chapters)
    for checker in (k for c in chapters for k in CHAPTERS[c]):
        report(**_result(checker, namespace))
    report(done=True)
    _wait()


def _wait() -> None:
    """Wait for the grader to end this process, together with all that it started."""
    while True:
        time.sleep(60)


def _reports() -> Report:
    """Keep standard output for the reports, and point the notebook's prints to nowhere."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)

    def report(**facts: Any) -> None:
        channel.write(json.dumps(facts) + "\n")
        channel.flush()

    return report


def read_notebook(content: bytes) -> tuple[list[str], str | None]:
    """Take a notebook apart.

    Args:
        content: the file.

    Returns:
        The sources of its code cells, and the chapter that its metadata names, if they do.

    Raises:
        ValueError: it is no notebook of format 4.
    """
    if not content.strip():
        raise ValueError("the file is empty")
    try:
        notebook = json.loads(content)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file is not JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise ValueError("the file is JSON, but no notebook of format 4") from error
    metadata = notebook.get("metadata")
    ours = metadata.get("course_lib") if isinstance(metadata, dict) else None
    chapter = ours.get("chapter") if isinstance(ours, dict) else None
    return sources, chapter if isinstance(chapter, str) else None


def run_cells(sources: Iterable[str], seconds: float, report: Report) -> dict[str, Any]:
    """Run the cells in order in one module; one that fails is reported, and the next goes on.

    Args:
        sources: of the code cells.
        seconds: a cell that takes longer is interrupted.
        report: gets `note=...` for every cell that fails.

    Returns:
        The names that the cells defined.
    """
    module, kept = types.ModuleType("__main__"), dict(builtins.__dict__)
    module.__dict__["display"] = lambda *_, **__: None  # Jupyter's
    sys.modules["__main__"] = module
    for number, source in enumerate(sources, 1):
        late: list[bool] = []
        try:
            code = _compiled(source, f"<code cell {number}>")
            with _interrupted_after(seconds, late):
                try:
                    exec(code, module.__dict__)
                finally:  # the next cells, and this module, need what a cell may have replaced
                    builtins.__dict__.update(kept)
        except BaseException as error:  # SystemExit too ends only its cell
            what = f"interrupted after {seconds:g} s" if late else _said(error)
            report(note=f"code cell {number}: {what}")
    return module.__dict__


def _compiled(source: str, name: str) -> types.CodeType:
    """The code of a cell; its lines are known to tracebacks and to `inspect`."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError:  # perhaps for its magic lines alone
        return compile(without_magics(source), name, "exec", dont_inherit=True)


def without_magics(source: str) -> str:
    """Replace lines that only IPython understands with `pass`; line numbers stay.

    A cell that begins with a magic such as `%%bash` is no Python and becomes empty; one that is
    only timed or captured keeps its other lines.
    """
    first = source.lstrip().split(maxsplit=1)[0] if source.strip() else ""
    if first.startswith("%%") and first not in KEEPS_BODY:
        return ""
    return MAGIC.sub(r"\1pass", source)


@contextlib.contextmanager
def _interrupted_after(seconds: float, late: list[bool]) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C would, at a time and each second until it gives in."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0 if late else seconds):
            late.append(True)
            if hasattr(signal, "pthread_kill"):  # wakes up a main thread that sleeps
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                _thread.interrupt_main()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _found(checker: Checker, namespace: dict[str, Any]) -> bool:
    """Whether the notebook has something of that name, beside the checker itself."""
    return not isinstance(namespace.get(checker.name, checker), Checker)


def _result(checker: Checker, namespace: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"chapter": checker.chapter, "exercise": checker.name}
    facts["title"] = checker.title
    if not _found(checker, namespace):
        return {**facts, "result": "not found", "message": f"no function {checker.name}"}
    try:
        verdict = checker.run(namespace[checker.name])
    except BaseException as error:  # the notebook may have changed what checkers are made of
        return {**facts, "result": "error", "message": f"the check failed: {_said(error)}"}
    told = [verdict.headline, *(f"{label}: {text}" for label, text in verdict.details)]
    facts |= {"passed_cases": verdict.passed_cases, "cases": verdict.cases}
    return {**facts, "result": RESULTS[verdict.status], "message": " ".join(told)}


def _said(error: BaseException) -> str:
    """Kind and text of an error; a learner's exception may not even have a text."""
    try:
        return f"{type(error).__name__}: {str(error)[:500]}"
    except BaseException:
        return type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1:])
