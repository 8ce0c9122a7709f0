"""The `{chapter-runtime}` directive: how long this page took to run, as this build measured it."""

from __future__ import annotations

import os

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

__all__ = ["ChapterRuntime", "insert_runtime", "sentence"]


class RuntimeNode(nodes.General, nodes.Element):
    """Stands for the sentence until the page has run."""


class ChapterRuntime(SphinxDirective):
    """Leave a mark that `insert_runtime` replaces."""

    def run(self) -> list[nodes.Node]:
        """Return the mark."""
        return [RuntimeNode()]


def sentence(seconds: float | None, cores: int) -> str:
    """Return the words for a measured time."""
    if seconds is None:
        return "The time that this page takes to run was not measured in this build."
    cpu = f"{cores} CPU core{'s' if cores > 1 else ''}"
    return f"This page ran in {max(1, round(seconds))} s on {cpu} when this book was built."


def cores_in_use() -> int:
    """Return the number of CPU cores that torch may use: OMP_NUM_THREADS, or all of them."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        return int(threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def insert_runtime(app, doctree: nodes.document, docname: str) -> None:
    """Put the measured time in place of each mark."""
    for node in list(doctree.findall(RuntimeNode)):
        data = getattr(app.env, "nb_metadata", {}).get(docname, {}).get("exec_data") or {}
        text = sentence(data.get("runtime"), cores_in_use())
        node.replace_self(nodes.paragraph("", text, classes=["chapter-runtime"]))
