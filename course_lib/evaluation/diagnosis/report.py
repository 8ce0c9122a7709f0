"""What a diagnosis says: findings, and the table of them for a terminal or a notebook."""

import html
import textwrap
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Report"]

_MARKS = {"ok": "✓", "look": "?", "bad": "✗", "skipped": "–"}
_HEADS = ("check", "verdict", "evidence", "what to try")
_WIDTHS = (16, 9, 41, 30)  # with the gaps, 100 columns


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: name of the check.
        verdict: "ok"; "look", worth a look; "bad", a fault; or "skipped", not run.
        evidence: what was measured, with the numbers.
        cause: name of the fault, such as "swapped time"; empty where there is none, or where the
            finding follows from another.
        advice: what to try.

    Raises:
        ValueError: if the verdict is none of the four.
    """

    check: str
    verdict: Literal["ok", "look", "bad", "skipped"]
    evidence: str
    cause: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in _MARKS:
            raise ValueError(f"verdict must be one of {', '.join(_MARKS)}; got {self.verdict!r}")

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Check, verdict with its mark, cause with evidence, and advice, as in the table."""
        said = f"{self.cause}: {self.evidence}" if self.cause else self.evidence
        return self.check, f"{_MARKS[self.verdict]} {self.verdict}", said, self.advice


@dataclass(frozen=True)
class Report:
    """What :func:`diagnose` found; printed or shown in a notebook it is a table.

    Args:
        findings: one for each check, in the order in which to read and to mend them.
    """

    findings: tuple[Finding, ...]

    @property
    def causes(self) -> tuple[str, ...]:
        """The faults named, each once, the first to mend first."""
        return tuple(dict.fromkeys(f.cause for f in self.findings if f.cause))

    @property
    def verdict(self) -> Literal["ok", "look", "bad"]:
        """The gravest verdict of all, where skipped checks do not count."""
        given = {f.verdict for f in self.findings}
        return "bad" if "bad" in given else "look" if "look" in given else "ok"

    @property
    def headline(self) -> str:
        """The report in one line."""
        named = f"{_MARKS[self.verdict]} {self.verdict}: "
        if self.causes:
            return f"{named}{', '.join(self.causes)}"
        count = sum(f.verdict == "ok" for f in self.findings)
        return f"{named}no fault named; {count} of {len(self.findings)} checks are ok"

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check.

        Raises:
            KeyError: if there is no check of that name.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"no check {check!r}; there are {', '.join(f.check for f in self.findings)}")

    def __str__(self) -> str:
        rule = "-" * (sum(_WIDTHS) + 2 * len(_WIDTHS) - 2)
        lines = [self.headline, rule, *_row(_HEADS), rule]
        for finding in self.findings:
            lines += _row(finding.cells)
        return "\n".join([*lines, rule])

    def _repr_html_(self) -> str:
        """The table; its colours are those of the page, and verdicts are words with marks."""
        cell = 'style="text-align:left;vertical-align:top;padding:.3em .6em"'
        head = "".join(f'<th scope="col" {cell}>{name}</th>' for name in _HEADS)
        rows = "".join(_html_row(finding, cell) for finding in self.findings)
        return (
            f'<table class="course-diagnosis"><caption style="text-align:left;font-weight:bold">'
            f"{html.escape(self.headline)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


def _row(cells: tuple[str, ...]) -> list[str]:
    """One row of the terminal's table, each cell wrapped within its column."""
    columns = [textwrap.wrap(c, w) or [""] for c, w in zip(cells, _WIDTHS, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    lines = zip(*padded, strict=True)
    return [
        "  ".join(f"{c:{w}}" for c, w in zip(line, _WIDTHS, strict=True)).rstrip() for line in lines
    ]


def _html_row(finding: Finding, cell: str) -> str:
    check, verdict, _, advice = map(html.escape, finding.cells)
    cause = f"<b>{html.escape(finding.cause)}</b>: " if finding.cause else ""
    said = cause + html.escape(finding.evidence)
    verdict = f"<b>{verdict}</b>" if finding.verdict in ("bad", "look") else verdict
    return (
        f'<tr><th scope="row" {cell}>{check}</th><td {cell}>{verdict}</td>'
        f"<td {cell}>{said}</td><td {cell}>{advice}</td></tr>"
    )
