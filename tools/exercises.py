"""Read the exercises of a chapter from their one source, `exercises/NN_name.md`.

The source is Markdown: an introduction with the set-up code that all exercises share, then one
`## label` for each exercise, with its statement and the sections `### Hint 1`, `### Hint 2`,
`### Start` (optional) and `### Solution`. The label is the name of the function that is asked for;
its title, kind, difficulty and minutes belong to its checker in `course_lib.check`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

__all__ = ["Exercise", "Sheet", "checkers_of", "read_sheet"]

FENCE = re.compile(r"^ *(`{3,}|~{3,}|:{3,})")
PYTHON = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
SECTIONS = ["Hint 1", "Hint 2", "Solution"]
KINDS = {"bug": "spot the bug"}


@dataclass(frozen=True)
class Exercise:
    """One exercise: the parts of its text, and the checker that knows the rest.

    Args:
        chapter: name of the chapter, such as `ddpm`.
        label: name of the function that is asked for.
        checker: has the title, kind, difficulty and minutes.
        statement, hints, explanation: MyST Markdown.
        solution: code that defines the function, with what it needs.
        start: the code to start from, or nothing if that follows from the solution.
    """

    chapter: str
    label: str
    checker: Any
    statement: str
    hints: tuple[str, str]
    solution: str
    explanation: str = ""
    start: str = ""

    @property
    def anchor(self) -> str:
        """The label of the exercise in the book."""
        return f"ex-{self.chapter}-{self.label.replace('_', '-')}"

    @property
    def facts(self) -> str:
        """Kind, difficulty and time in one line."""
        kind = KINDS.get(self.checker.kind, self.checker.kind)
        level = "●" * self.checker.difficulty + "○" * (3 - self.checker.difficulty)
        return f"*{kind} · difficulty {level} · about {self.checker.minutes} minutes*"

    @property
    def signature(self) -> str:
        """What is given: the code to start from, or the solution up to the end of its docstring."""
        if self.start:
            return self.start
        function = _functions(self.solution, self.label)[0]
        return "\n".join(
            self.solution.split("\n")[function.lineno - 1 : function.body[0].end_lineno]
        )

    @property
    def stub(self) -> str:
        """The cell that the reader fills in."""
        message = f'"{self.label}: replace this line with your answer"'
        return self.start or f"{self.signature}\n    raise NotImplementedError({message})"

    @property
    def answer(self) -> str:
        """The solution without the docstring of the function, for where both stand together."""
        docstring = _functions(self.solution, self.label)[0].body[0]
        lines = self.solution.split("\n")
        return "\n".join(lines[: docstring.lineno - 1] + lines[docstring.end_lineno :])

    @property
    def check(self) -> str:
        """The call of the checker."""
        return f"check.{self.chapter}.{self.label}({self.label})"


@dataclass(frozen=True)
class Sheet:
    """The exercises of one chapter.

    Args:
        name: name of the chapter's page, such as `01_ddpm`.
        opening: the introduction and the set-up, each part with its kind (`markdown` or `code`).
        exercises: the exercises, in the order of the source.
    """

    name: str
    opening: tuple[tuple[str, str], ...]
    exercises: tuple[Exercise, ...]

    @property
    def chapter(self) -> str:
        """The name of the chapter, such as `ddpm`."""
        return self.name.partition("_")[2]


def checkers_of(chapter: str) -> tuple[Any, ...]:
    """Return the checkers of a chapter in their order, none if it is not known."""
    from course_lib.check import CHAPTERS

    return CHAPTERS.get(chapter, ())


def read_sheet(path: Path) -> Sheet:
    """Read the exercises of a chapter.

    Raises:
        ValueError: if something is missing or out of order, or the labels are not those of the
            checkers; the message names the file and the exercise.
    """
    where, chapter = f"exercises/{path.name}", path.stem.partition("_")[2]
    (_, opening), *entries = _split(path.read_text(encoding="utf-8"), 2, where)
    if not opening.startswith("# "):
        raise ValueError(f"{where}: the first line must be a title, `# ...`")
    labels, checkers = [label for label, _ in entries], checkers_of(chapter)
    if labels != (wanted := [checker.name for checker in checkers]):
        raise ValueError(
            f"{where}: the exercises are {labels}; course_lib.check has {wanted} for the chapter "
            f"{chapter!r}, and both must be the same, in the same order"
        )
    pairs = zip(entries, checkers, strict=True)
    read = [_exercise(chapter, name, text, c, where) for (name, text), c in pairs]
    return Sheet(path.stem, _parts(opening), tuple(read))


def _split(text: str, level: int, where: str) -> list[tuple[str, str]]:
    """Split a text at the headings of a level, those in code left out; the first has no heading."""
    mark, fence = "#" * level + " ", ""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.split("\n"):
        if fence:
            closes = line.strip().startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif opens := FENCE.match(line):
            fence = opens[1]
        elif line.startswith(mark):
            parts.append((line.removeprefix(mark).strip(), []))
            continue
        parts[-1][1].append(line)
    if fence:
        raise ValueError(f"{where}: a fence {fence!r} is not closed")
    return [(title, "\n".join(lines).strip()) for title, lines in parts]


def _parts(text: str) -> tuple[tuple[str, str], ...]:
    """Split a text into Markdown and the code blocks between it."""
    parts = zip(cycle(("markdown", "code")), PYTHON.split(text), strict=False)
    return tuple((kind, part.strip("\n")) for kind, part in parts if part.strip())


def _exercise(chapter: str, label: str, text: str, checker: Any, where: str) -> Exercise:
    """Read one exercise and look at all that it must have."""
    where = f"{where}, exercise {label!r}"
    (_, statement), *sections = _split(text, 3, where)
    found = [title for title, _ in sections]
    if [title for title in found if title != "Start"] != SECTIONS or found.count("Start") > 1:
        raise ValueError(
            f"{where}: the sections must be {', '.join(SECTIONS)}, and Start where the stub does "
            f"not follow from the solution; found {', '.join(found) or 'none'}"
        )
    for title, part in [("statement", statement), *sections]:
        if not part:
            raise ValueError(f"{where}: the part {title!r} is empty")
    named = dict(sections)
    solution, explanation = _code(named["Solution"], label, f"{where}, Solution")
    start, rest = ("", "")
    if "Start" in named:
        start, rest = _code(named["Start"], label, f"{where}, Start")
    if rest:
        raise ValueError(f"{where}, Start: only one code block belongs here; found {rest[:40]!r}")
    hints = (named["Hint 1"], named["Hint 2"])
    return Exercise(chapter, label, checker, statement, hints, solution, explanation, start)


def _code(text: str, label: str, where: str) -> tuple[str, str]:
    """Split a section into the code block that comes first, with the function, and the rest."""
    block = PYTHON.match(text)
    if not block:
        raise ValueError(f"{where}: must begin with a code block, ```python")
    try:
        functions = _functions(block[1], label)
    except SyntaxError as error:
        raise ValueError(f"{where}: the code cannot be read: {error}") from error
    if len(functions) != 1:
        raise ValueError(f"{where}: must define {label} once; found {len(functions)} definitions")
    if not ast.get_docstring(functions[0]):
        raise ValueError(f"{where}: {label} has no docstring")
    if untyped := _untyped(functions[0]):
        raise ValueError(f"{where}: {label} has no type for {', '.join(untyped)}")
    return block[1], text[block.end() :].strip()


def _functions(code: str, name: str) -> list[ast.FunctionDef]:
    """Return the functions of that name that the code defines."""
    return [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == name]


def _untyped(function: ast.FunctionDef) -> list[str]:
    """Return the names of the arguments without a type, and `return` if the result has none."""
    a = function.args
    optional = [arg for arg in (a.vararg, a.kwarg) if arg]
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *optional]
    return [arg.arg for arg in arguments if not arg.annotation] + ["return"] * (
        not function.returns
    )
