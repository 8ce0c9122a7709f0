"""The `{exercises}` directive: the exercises of a chapter on its page, hints and solutions folded.

It reads the source of the exercise notebooks, writes it as MyST, and lets Sphinx parse that, so
that references, citations and numbers work as in the rest of the page.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from exercises import Exercise, Sheet, read_sheet
from repository import Repository

__all__ = ["ExerciseSection", "section"]

TOP = """\
Work on them in a notebook, with checks that run on your answers:
[open it in Colab]({colab}/{name}.ipynb), or [download it](path:../exercises/{name}.ipynb).
"""
BOX = """\
{outer}{{exercise}} {title}
:label: {anchor}

{facts}

{statement}

```python
{signature}
```

{hints}

{inner}{{dropdown}} Solution
```python
{answer}
```

{explanation}
{inner}
{outer}
"""


class ExerciseSection(SphinxDirective):
    """Put the exercises of a chapter here; the argument is its name, such as `ddpm`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the exercises, parsed as a part of the page."""
        root = Path(self.env.srcdir).parent
        paths = list(root.glob(f"exercises/[0-9][0-9]_{self.arguments[0]}.md"))
        if len(paths) != 1:
            raise self.error(f"there is no exercises/NN_{self.arguments[0]}.md")
        self.env.note_dependency(str(paths[0]))
        try:
            text = section(read_sheet(paths[0]), Repository.read(root))
        except ValueError as error:
            raise self.error(str(error)) from error
        container = nodes.container(classes=["exercises"])
        self.state.nested_parse(StringList(text.split("\n"), str(paths[0])), 0, container)
        return [container]


def section(sheet: Sheet, repository: Repository) -> str:
    """Return the exercises as MyST."""
    colab = repository.at("exercises").colab
    return "\n".join([TOP.format(name=sheet.name, colab=colab), *map(_box, sheet.exercises)])


def _box(exercise: Exercise) -> str:
    """Return one exercise as MyST."""
    parts = [exercise.statement, *exercise.hints, exercise.explanation]
    longest = max(map(len, re.findall(":{3,}", "\n".join(parts))), default=2)
    outer, inner = ":" * (longest + 2), ":" * (longest + 1)
    hints = [
        f"{inner}{{dropdown}} Hint {i}\n{hint}\n{inner}" for i, hint in enumerate(exercise.hints, 1)
    ]
    return BOX.format(
        outer=outer,
        inner=inner,
        title=exercise.checker.title,
        anchor=exercise.anchor,
        facts=exercise.facts,
        statement=exercise.statement,
        signature=exercise.signature,
        hints="\n\n".join(hints),
        answer=exercise.answer,
        explanation=exercise.explanation,
    )
