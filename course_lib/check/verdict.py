"""What a check says: in colour in a notebook, in plain text anywhere else."""

from __future__ import annotations

import html
import os
import sys
import textwrap
from dataclasses import dataclass
from typing import Literal

__all__ = ["Verdict", "print_marks", "show"]

MARKS = {"passed": "✓", "failed": "✗", "todo": "○"}
COLOURS = {"passed": "#2e9e5b", "failed": "#d9534f", "todo": "#8a8f98"}
ANSI = {"passed": "\033[32m", "failed": "\033[31m", "todo": "\033[90m"}
WORDS = {"passed": "passed", "failed": "not yet", "todo": "to do"}


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Args:
        name: the function that was checked.
        title: the title of its exercise.
        status: "passed", "failed", or "todo" for a stub that was not touched.
        passed_cases: number of cases with the right answer.
        cases: number of cases that were run.
        headline: one line that says it all.
        details: further lines, in the order in which to read them: label and text.
        printed: what the function printed meanwhile.
    """

    name: str
    title: str
    status: Literal["passed", "failed", "todo"]
    passed_cases: int
    cases: int
    headline: str
    details: tuple[tuple[str, str], ...] = ()
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether every case was right."""
        return self.status == "passed"

    def __repr__(self) -> str:
        return self.text()

    def text(self, colour: bool = False) -> str:
        """The verdict as lines of text, with ANSI colours on request."""
        head = f"{MARKS[self.status]} {self.title} ({self.name}): {self.headline}"
        if colour:
            head = f"{ANSI[self.status]}{head}\033[0m"
        lines = [head, *(_wrapped(f"{label}: {text}") for label, text in self.details)]
        if self.printed:
            lines += ["  Your function printed:", *_indented(self.printed)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The verdict as a box; it takes its text colour from the page, light or dark."""
        colour = COLOURS[self.status]
        rows = "".join(
            f'<div style="margin-top:.35em"><b>{html.escape(label)}:</b> {html.escape(text)}</div>'
            for label, text in self.details
        )
        if self.printed:
            rows += '<div style="margin-top:.35em"><b>Your function printed:</b></div>'
            rows += f"<pre style='margin:.4em 0 0'>{html.escape(self.printed)}</pre>"
        return (
            '<div class="course-verdict" role="status" '
            f'style="border-left:.35em solid {colour};padding:.5em .9em;'
            f'background:{colour}1c;border-radius:.25em;line-height:1.45;max-width:52em">'
            f"<b>{MARKS[self.status]} {html.escape(self.title)}</b> "
            f'<span style="border:1px solid {colour};border-radius:.8em;padding:0 .6em;'
            f'margin:0 .4em;font-size:.85em;white-space:nowrap">{WORDS[self.status]}</span> '
            f"{html.escape(self.headline)}{rows}</div>"
        )


def show(verdict: Verdict) -> None:
    """Display a verdict in a notebook; print it in a terminal, in colour if that shows any."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell and getattr(shell, "kernel", None):  # Jupyter, VS Code, Colab; not plain ipython
        sys.modules["IPython"].display.display(verdict)
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print_marks(verdict.text(colour))


def print_marks(text: str) -> None:
    """Print a text with marks such as ✓, also to a terminal that lacks some of them."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _wrapped(text: str) -> str:
    """Text in lines that fit a terminal of 88 columns and more."""
    return textwrap.fill(
        text,
        88,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.rstrip("\n").split("\n")]
