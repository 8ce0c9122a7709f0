"""`course-lib grade`: a table of learners' notebooks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_lib.cli.parsing import new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["parser", "run"]

DESCRIPTION = """Run learners' notebooks, each in a process of its own with limits of time and
memory, check their functions, and write a table to the terminal and to a CSV file.

  course-lib grade submissions/*.ipynb --csv grades.csv

The exit status is 0 if all could be graded, whatever their marks, 1 if one could not be graded in
full, 2 after a wrong argument, 130 after Ctrl-C. This isolates against accidents, not against an
attacker."""


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Notebooks and limits."""
    from course_lib.check import CHAPTERS
    from course_lib.check.grading import GIGABYTES, SECONDS

    new = new_parser(DESCRIPTION)
    new.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="notebooks to grade")
    new.add_argument("--chapter", choices=list(CHAPTERS), help="chapter of all the notebooks")
    new.add_argument("--csv", type=Path, default=Path("grades.csv"), help="file to write")
    new.add_argument("--force", action="store_true", help="replace the file if it exists")
    new.add_argument("--timeout", type=float, default=SECONDS, help="seconds for a notebook")
    new.add_argument("--memory", type=float, default=GIGABYTES, help="gigabytes for a notebook")
    return new


def run(config: Namespace) -> int:
    """Grade, writing the table after each notebook.

    Raises:
        ValueError: there is no such notebook, a limit is out of range, or the file exists.
    """
    from tqdm import tqdm

    from course_lib.check.grading import find_notebooks, grade
    from course_lib.check.grading_report import grades_table, write_csv
    from course_lib.check.verdict import print_marks

    notebooks = find_notebooks(config.notebooks)
    limits = {"timeout": config.timeout, "memory": config.memory}
    grading = grade(notebooks, chapter=config.chapter, **limits)
    if config.csv.exists() and not config.force:
        raise ValueError(f"{config.csv} exists: name another file with --csv, or use --force")
    graded: list[Any] = []
    write_csv(config.csv, graded)  # whether it can be written shows now, not after an hour
    interrupted = False
    try:
        for one in tqdm(grading, total=len(notebooks), unit="notebook", disable=None):
            graded.append(one)
            write_csv(config.csv, graded)
    except KeyboardInterrupt:
        interrupted = True
    print_marks(grades_table(graded, sys.stdout.encoding))
    done = f"{len(graded)} of {len(notebooks)} notebooks"
    print_marks(f"\n{done}{' (interrupted)' * interrupted}: {config.csv}")
    return 130 if interrupted else int(any(one.trouble for one in graded))
