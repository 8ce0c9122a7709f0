"""Checks of the course's exercises: ``check.ddpm.q_sample(your_function)`` says what is right.

One module a chapter, one checker an exercise. ``check.progress()`` shows what you have passed.
"""

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
from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.overview import CHAPTERS, progress, progress_table
from course_lib.check.verdict import Verdict

__all__ = [
    "CHAPTERS",
    "Case",
    "Checker",
    "Mistake",
    "Verdict",
    "composition",
    "consistency",
    "ddpm",
    "editing",
    "flow_matching",
    "guidance",
    "progress",
    "progress_table",
    "reflow_ot",
    "score_distillation_3d",
    "score_flows",
    "solvers",
    "text_to_image",
]
