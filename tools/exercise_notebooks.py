"""The two notebooks of a chapter's exercises: with stubs, and solved.

The id of an exercise's cell is made of its label and the cell's role, such as `q_sample-stub`, and
stays when the text changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from exercises import Exercise, Sheet
from plain_markdown import Page, translate
from repository import Repository
from stored_notebook import COMPARED, METADATA, install_cell

__all__ = ["exercise_notebooks", "pointer"]

NOTES = {
    "exercises": """\
*Exercises for the chapter [{title}]({book}/{name}.ipynb).*
[Open them in Colab]({colab}/{name}.ipynb).

Work in a copy of this notebook (on Colab: *File*, *Save a copy in Drive*). This one is generated
from [`{name}.md`]({exercises}/{name}.md), and is written again whenever that file changes. The
numbers of equations are the chapter's.""",
    "solutions": """\
*Solutions of the [exercises]({exercises}/{name}.ipynb) for the chapter
[{title}]({book}/{name}.ipynb).* [Open them in Colab]({colab}/{name}.ipynb).

*This notebook is generated from [`{name}.md`]({exercises}/{name}.md): change that file, not this
one.*""",
}
END = """\
---

The solutions, with explanations, are in [`solutions/{name}.ipynb`]({solutions}/{name}.ipynb)."""
POINTER = """\
The exercises have a notebook of their own, with hints, and with checks that run on your answers:
[`exercises/{name}.ipynb`]({exercises}/{name}.ipynb). [Open it in Colab]({colab}/{name}.ipynb).
"""
HINT = "<details>\n<summary>Hint {number}</summary>\n\n{text}\n\n</details>"


def pointer(name: str, repository: Repository) -> str:
    """Return what stands for the exercises in the notebook of their chapter."""
    there = repository.at("exercises")
    return POINTER.format(name=name, exercises=there.pages, colab=there.colab)


def exercise_notebooks(sheet: Sheet, page: Page, repository: Repository) -> dict[str, NotebookNode]:
    """Return the notebooks by their folders, `exercises` and `solutions`.

    Args:
        sheet: the exercises of a chapter.
        page: the chapter's page. Its text has been translated: the numbers go on from there.
        repository: addresses of the book.
    """
    for exercise in sheet.exercises:
        page.note(exercise.anchor, f"Exercise {page.number('exercise')}")
    sheet = _translated(sheet, page)
    return {folder: _notebook(folder, sheet, page, repository) for folder in NOTES}


def _translated(sheet: Sheet, page: Page) -> Sheet:
    """Return the sheet with its text in plain Markdown."""

    def plain(text: str) -> str:
        return page.expand(translate(text, page))

    opening = tuple((kind, plain(p) if kind == "markdown" else p) for kind, p in sheet.opening)
    exercises = tuple(
        replace(
            exercise,
            statement=plain(exercise.statement),
            hints=tuple(map(plain, exercise.hints)),
            explanation=plain(exercise.explanation),
        )
        for exercise in sheet.exercises
    )
    return replace(sheet, opening=opening, exercises=exercises)


def _notebook(folder: str, sheet: Sheet, page: Page, repository: Repository) -> NotebookNode:
    """Return the notebook of one of the two folders."""
    facts = {other: repository.at(other).pages for other in ("book", *NOTES)}
    facts |= {"name": sheet.name, "title": page.find(sheet.name)}
    facts |= {"colab": repository.at(folder).colab}
    solved = folder == "solutions"
    cells = [_text("note", NOTES[folder].format(**facts)), install_cell(repository.pip)]
    cells[1].id = "install"
    for i, (kind, part) in enumerate(sheet.opening, 1):
        cells.append((_text if kind == "markdown" else _code)(f"opening-{i}", part))
    for exercise in sheet.exercises:
        cells += _cells(exercise, page.find(exercise.anchor), solved)
    if not solved:
        cells.append(_text("end", END.format(**facts)))
    metadata = {**METADATA, "course_lib": {"chapter": sheet.chapter}}
    return new_notebook(cells=cells, metadata=metadata)


def _cells(exercise: Exercise, number: str, solved: bool) -> Iterator[NotebookNode]:
    """Return the cells of one exercise."""
    label, title = exercise.label, f"## {number}: {exercise.checker.title}"
    yield _text(f"{label}-statement", f"{title}\n\n{exercise.facts}\n\n{exercise.statement}")
    for i, hint in enumerate(exercise.hints, 1):
        yield _text(f"{label}-hint-{i}", HINT.format(number=i, text=hint))
    if not solved:
        yield _code(f"{label}-stub", exercise.stub)
        yield _code(f"{label}-check", exercise.check)
        return
    yield _code(f"{label}-solution", exercise.solution)
    if exercise.explanation:
        yield _text(f"{label}-explanation", exercise.explanation)
    yield _code(f"{label}-check", exercise.check, COMPARED)


def _text(name: str, source: str) -> NotebookNode:
    return new_markdown_cell(source, id=name)


def _code(name: str, source: str, *tags: str) -> NotebookNode:
    return new_code_cell(source, id=name, metadata={"tags": list(tags)} if tags else {})
