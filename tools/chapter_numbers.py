"""Chapters are numbered by their file names, not by their place among the pages that exist.

So the number of a chapter, and of every equation in it, stays the same when a chapter before it is
added, and is the same on the page, in the notebook and on the map.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["chapter_number", "number_chapters"]


def chapter_number(docname: str) -> int | None:
    """Return the number that the name of a page starts with, or None: 7 for `07_solvers`."""
    digits = re.match(r"\d+", PurePosixPath(docname).name)
    return int(digits[0]) if digits else None


def number_chapters(app: Sphinx, env) -> list[str]:
    """Replace the first part of every number that Sphinx gave; return the pages that changed.

    To be called after Sphinx has numbered sections and figures (event `env-get-updated`).
    """
    changed = []
    for page, sections in env.toc_secnumbers.items():
        number = chapter_number(page)
        if number is None:
            continue
        env.toc_secnumbers[page] = {k: with_first(n, number) for k, n in sections.items()}
        kinds = env.toc_fignumbers.get(page, {})
        env.toc_fignumbers[page] = {
            kind: {key: with_first(n, number) for key, n in numbers.items()}
            for kind, numbers in kinds.items()
        }
        for node in (env.titles[page], *env.tocs[page].findall(nodes.reference)):
            if node.get("secnumber"):
                node["secnumber"] = list(with_first(tuple(node["secnumber"]), number))
        changed += [page] if env.toc_secnumbers[page] != sections else []
    return changed


def with_first(numbers: tuple[int, ...], first: int) -> tuple[int, ...]:
    """Return the numbers with another first one; none stay none."""
    return (first, *numbers[1:]) if numbers else numbers
