"""Run the checks of `make test` one after another, and print how long each took.

Usage: `python tools/stages.py [STAGE ...]`. Without a name, all stages run. A failed stage does not
stop the next ones, so one run shows everything that is wrong; the exit status is 1 if any failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent


@dataclass(frozen=True)
class Stage:
    """One check: a name, the function that gives its command, extra environment variables."""

    name: str
    command: Callable[[], list[str]]
    env: dict[str, str] = field(default_factory=dict)
    needs: str = ""


def script(name: str, *args: str) -> list[str]:
    """Return the command of a console script that is installed beside this interpreter."""
    return [shutil.which(name, path=str(BIN)) or name, *args]


def pytest(*args: str) -> list[str]:
    """Return a pytest command."""
    return [PYTHON, "-m", "pytest", *args]


def nbval() -> list[str]:
    """Return the command that runs every notebook of `book/` and `solutions/`, if there is one."""
    notebooks = [str(p) for d in ("book", "solutions") for p in sorted((ROOT / d).glob("*.ipynb"))]
    options = ["--nbval-lax", "-n", "2", "--dist", "loadfile", "-p", "no:randomly"]
    options += ["-p", "nbval_keep"]  # the book build takes the pages that it runs
    return pytest(*options, *notebooks) if notebooks else []


def book() -> list[str]:
    """Return the command that reads and writes every page; executed notebooks come from a cache."""
    flags = ["--all", "-W", "-n", "--keep-going", "-q", "--toc", str(ROOT / "_toc.yml")]
    return script("jupyter-book", "build", "book", *flags)


# Two processes whose torch threads wait for each other on two cores can be a hundred times slower.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# The solutions that pass here are nobody's progress.
NO_PROGRESS = {"COURSE_PROGRESS": "off"}
STAGES = [
    Stage("lint", lambda: script("ruff", "check", ".")),
    Stage("format", lambda: script("ruff", "format", "--check", ".")),
    Stage("types", lambda: [PYTHON, "-m", "mypy"]),
    Stage("layers", lambda: script("lint-imports", "--no-logo")),
    Stage("notebooks", lambda: [PYTHON, "tools/notebooks.py", "--check"]),
    Stage("unit", lambda: pytest("-n", "2", "--cov", "--cov-report=term:skip-covered"), ONE_THREAD),
    Stage("nbval", nbval, ONE_THREAD | NO_PROGRESS),
    Stage("book", book, ONE_THREAD | NO_PROGRESS),
    Stage("browser", lambda: pytest("-m", "browser", "tests/book/test_browser.py"), needs="book"),
]


def run_stage(stage: Stage) -> tuple[str, float]:
    """Run one stage; return its result (`ok`, `FAILED` or `nothing to do`) and its seconds."""
    command = stage.command()
    print(f"\n=== {stage.name}", flush=True)
    if not command:
        return "nothing to do", 0.0
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **stage.env}, check=False)
    return ("ok" if done.returncode == 0 else "FAILED"), time.perf_counter() - start


def run(stages: list[Stage]) -> dict[str, tuple[str, float]]:
    """Run the stages in order; one that needs a failed stage is left out and counts as failed."""
    results: dict[str, tuple[str, float]] = {}
    for stage in stages:
        needed = results.get(stage.needs, ("ok", 0.0))[0]
        results[stage.name] = run_stage(stage) if needed == "ok" else ("FAILED", 0.0)
    return results


def table(results: dict[str, tuple[str, float]]) -> str:
    """Return the table of results and times that closes a run."""
    total = sum(seconds for _, seconds in results.values())
    lines = [
        f"{name:<12}{seconds:>8.1f} s   {result}" for name, (result, seconds) in results.items()
    ]
    return "\n".join(["", *lines, f"{'total':<12}{total:>8.1f} s"])


def main(names: list[str]) -> int:
    """Run the named stages, or all, and return the exit status."""
    known = [stage.name for stage in STAGES]
    if unknown := [name for name in names if name not in known]:
        print(f"unknown stage {', '.join(unknown)}; allowed: {', '.join(known)}", file=sys.stderr)
        return 2
    results = run([stage for stage in STAGES if not names or stage.name in names])
    print(table(results), flush=True)
    return int(any(result == "FAILED" for result, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
