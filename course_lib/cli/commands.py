"""Which command is meant, and what becomes of its errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from course_lib.cli.parsing import new_parser, with_plain_names

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

# Each module has a function `parser(arguments)` and a function `run(config)`. A module is imported
# only if it is named: the classes of recipes and solvers take seconds to load.
COMMANDS = {
    "train": "train a recipe and save its weights",
    "sample": "draw images or points with a trained model",
    "evaluate": "measure a trained model",
    "encode": "make latents of images, to train on",
    "progress": "show which exercises you have passed, and which comes next",
    "grade": "grade learners' notebooks",
}

DESCRIPTION = """Train, sample and evaluate the models of the course, and check its exercises.

  course-lib train ddpm_digits --steps 500
  course-lib sample --checkpoint runs/ddpm_digits --output digits.png
  course-lib COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        0; 2 after an error, which is told in one line; 130 after Ctrl-C. `grade` adds 1 if a
        notebook could not be graded in full.
    """
    from jsonargparse import ArgumentError

    arguments = with_plain_names(sys.argv[1:] if argv is None else argv)
    try:
        config = _parser(arguments).parse_args(arguments)
        run: Callable[..., int] = _module(config.subcommand).run
        return run(config[config.subcommand])
    except (ArgumentError, ValueError, TypeError, OSError, FloatingPointError) as error:
        print("course-lib: error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("course-lib: interrupted", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    parser = new_parser(DESCRIPTION, prog="course-lib")
    commands = parser.add_subcommands()
    for name, summary in COMMANDS.items():
        named = arguments[:1] == [name]
        own = _module(name).parser(arguments[1:]) if named else new_parser()
        commands.add_subcommand(name, own, help=summary)
    return parser


def _module(command: str) -> ModuleType:
    return import_module(f"course_lib.cli.{command}")
