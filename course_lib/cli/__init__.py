"""The command line: `course-lib train`, `sample`, `evaluate`, `progress` and `grade`."""

from course_lib.cli.commands import main
from course_lib.cli.measuring import measure

__all__ = ["main", "measure"]
