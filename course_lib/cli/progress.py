"""`course-lib progress`: which exercises are passed, and which comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_lib.cli.parsing import new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["parser", "run"]

DESCRIPTION = """Show which exercises you have passed, and which comes next.

  course-lib progress"""


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Without options."""
    return new_parser(DESCRIPTION)


def run(config: Namespace) -> int:
    """Show it."""
    from course_lib.check import progress

    progress()
    return 0
