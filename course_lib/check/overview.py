"""The exercises of all chapters, and which of them are passed."""

from __future__ import annotations

from course_lib.check import (
    composition,
    consistency,
    ddpm,
    editing,
    flow_matching,
    guidance,
    reflow_ot,
    score_distillation_3d,
    score_flows,
    solvers,
    text_to_image,
)
from course_lib.check.checker import Checker
from course_lib.check.progress import passed_exercises, progress_path
from course_lib.check.verdict import print_marks

__all__ = ["CHAPTERS", "progress", "progress_table"]

CHAPTERS: dict[str, tuple[Checker, ...]] = {
    "ddpm": ddpm.CHECKERS,
    "guidance": guidance.CHECKERS,
    "flow_matching": flow_matching.CHECKERS,
    "score_flows": score_flows.CHECKERS,
    "reflow_ot": reflow_ot.CHECKERS,
    "consistency": consistency.CHECKERS,
    "solvers": solvers.CHECKERS,
    "text_to_image": text_to_image.CHECKERS,
    "editing": editing.CHECKERS,
    "score_distillation_3d": score_distillation_3d.CHECKERS,
    "composition": composition.CHECKERS,
}
"""The checkers of each chapter, in the order of its exercises."""


def progress() -> None:
    """Show which exercises you have passed, and which comes next."""
    print_marks(progress_table())


def progress_table() -> str:
    """Return which exercises are passed, chapter by chapter, and which comes next, as text."""
    passed = passed_exercises()
    lines: list[str] = []
    for chapter, checkers in CHAPTERS.items():
        done = [f"{chapter}.{c.name}" in passed for c in checkers]
        bar = "█" * sum(done) + "░" * (len(done) - sum(done))
        lines += ["", f"{chapter}  {bar}  {sum(done)} of {len(done)}"]
        lines += [_line(c, d) for c, d in zip(checkers, done, strict=True)]
    left = [c for cs in CHAPTERS.values() for c in cs if f"{c.chapter}.{c.name}" not in passed]
    path = progress_path()
    kept = f"kept in {path}" if path else "not kept: COURSE_PROGRESS is off"
    return "\n".join([*lines[1:], "", _next(left), f"({kept})"])


def _line(checker: Checker, done: bool) -> str:
    dots = "●" * checker.difficulty + "○" * (3 - checker.difficulty)
    mark = "✓" if done else " "
    return f"  {mark} {dots} {checker.minutes:>3} min  {checker.title} ({checker.name})"


def _next(left: list[Checker]) -> str:
    if not left:
        return "All passed. Well done!"
    first = left[0]
    return f"Next: {first.title}, check.{first.chapter}.{first.name}({first.name})"
