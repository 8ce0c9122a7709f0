"""What the parsers of all commands have in common."""

from __future__ import annotations

from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

__all__ = ["HelpFormatter", "new_parser", "with_plain_names"]


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description; says nothing of types, and of defaults that are none."""

    def _get_help_string(self, action: Action) -> str:
        if action.default is None and not action.required:
            return action.help or ""
        return super()._get_help_string(action)

    def _get_type_str(self, action: Action) -> str | None:
        return None


def new_parser(description: str = "", **options: Any) -> ArgumentParser:
    """A parser that raises its errors, and shows its description as it is written."""
    return ArgumentParser(
        exit_on_error=False, description=description, formatter_class=HelpFormatter, **options
    )


def with_plain_names(arguments: Sequence[str]) -> list[str]:
    """The arguments, with hyphens in flags and underscores in paths of fields.

    So `--batch_size` is `--batch-size`, and `--fit.batch-size` is `--fit.batch_size`.
    """
    return [_plain(argument) if argument[:2] == "--" else argument for argument in arguments]


def _plain(flag: str) -> str:
    name, equals, value = flag[2:].partition("=")
    name = name.replace("-", "_") if "." in name else name.replace("_", "-")
    return f"--{name}{equals}{value}"
