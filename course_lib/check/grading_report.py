"""What grading shows: a table for the terminal, and a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from course_lib.check import CHAPTERS
from course_lib.check.grading import Grade, Graded
from course_lib.training.atomic import write_atomic

__all__ = ["grades_table", "write_csv"]

MARKS = {"passed": "✓", "failed": "✗", "not attempted": "–", "not found": "?", "error": "!"}
ASCII = {"passed": "+", "failed": "x", "not attempted": "-", "not found": "?", "error": "!"}
FIELDS = ("notebook", "chapter", "exercise", "title", "result", "passed_cases", "cases", "message")
WIDTH = 80


def grades_table(graded: Sequence[Graded], encoding: str | None = "utf-8") -> str:
    """Return the table: for each chapter notebooks by exercises, then what went wrong.

    Args:
        graded: the notebooks.
        encoding: of the terminal; one that lacks the marks gets others.
    """
    marks = MARKS if _has(encoding, "".join(MARKS.values())) else ASCII
    labels = _labels([g.notebook for g in graded])
    parts = []
    for chapter in CHAPTERS:
        rows = {
            label: (g, [x for x in g.grades if x.chapter == chapter])
            for label, g in zip(labels, graded, strict=True)
            if any(x.chapter == chapter for x in g.grades)
        }
        if rows:
            parts.append(_chapter(chapter, rows, marks))
    if parts:
        parts.append("   ".join(f"{mark} {result}" for result, mark in marks.items()))
    said = [_said(label, g) for label, g in zip(labels, graded, strict=True)]
    parts.append("\n".join(filter(None, said)))
    return "\n\n".join(filter(None, parts))


def _chapter(
    chapter: str, rows: dict[str, tuple[Graded, list[Grade]]], marks: dict[str, str]
) -> str:
    """Rows of notebooks, numbered columns of exercises, and the names of the columns."""
    checkers = CHAPTERS[chapter]
    n = len(checkers)
    width = min(max(map(len, (*rows, chapter))), max(WIDTH - 3 * n - 18, 20))
    head = "".join(f"{i:3}" for i in range(1, n + 1))
    lines = [f"{chapter:{width}}{head}{'passed':>9}{'time':>9}"]
    for label, (graded, grades) in rows.items():
        cells = "".join(f"{marks[grade.result]:>3}" for grade in grades)
        score = f"{sum(grade.result == 'passed' for grade in grades)}/{n}"
        shown = label if len(label) <= width else "..." + label[len(label) - width + 3 :]
        lines.append(f"{shown:{width}}{cells}{score:>9}{graded.seconds:7.1f} s")
    lines.append("")
    lines += [f"{i:3} {k.name}: {k.title}" for i, k in enumerate(checkers, 1)]
    return "\n".join(lines)


def _said(label: str, graded: Graded) -> str:
    """What the teacher should know of a notebook, in one line, or ""."""
    said = [graded.trouble, *graded.notes[:1]]
    more = f"(and {len(graded.notes) - 1} more cells)" if len(graded.notes) > 1 else ""
    told = one_line("; ".join(filter(None, said)), 200)
    return f"{label}: {told} {more}".rstrip() if told else ""


def _labels(notebooks: Sequence[str]) -> list[str]:
    """The paths without the folder that all have in common."""
    whole = [Path(os.path.abspath(notebook)) for notebook in notebooks]
    try:
        shared = os.path.commonpath([path.parent for path in whole]) if whole else ""
    except ValueError:  # two drives
        return [one_line(path.as_posix()) for path in whole]
    return [one_line(path.relative_to(shared).as_posix()) for path in whole]


def write_csv(path: Path, graded: Sequence[Graded]) -> None:
    """Write one row for each notebook and exercise; one without exercise says why.

    Args:
        path: the file; one that exists is replaced, at once and in full.
        graded: the notebooks.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(FIELDS)
    for g in graded:
        for x in g.grades or [Grade("", "", "", "error", g.trouble)]:
            facts = (g.notebook, x.chapter, x.exercise, x.title, x.result)
            rows.writerow([*map(_cell, facts), x.passed_cases, x.cases, _cell(x.message)])
    write_atomic(path, text.getvalue().encode("utf-8-sig"))  # the mark tells Excel that it is UTF-8


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def one_line(text: str, most: int = 1000) -> str:
    """Return the text in one line, without control characters, and cut where it is long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def _has(encoding: str | None, text: str) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
