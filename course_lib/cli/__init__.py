"""The command line: `course-lib train`, `sample`, `evaluate`, `encode`, `progress` and `grade`."""

from course_lib.cli.commands import main
from course_lib.cli.measuring import measure
from course_lib.cli.spaces import SampleSpace
from course_lib.cli.training import train_recipe

__all__ = ["SampleSpace", "main", "measure", "train_recipe"]
