"""What every generated notebook has in common: ids, the outputs that it keeps, its text on disk.

A cell tagged `nbval-check-output` keeps its printed text, and nbval compares it at every run. The
stored text stays for as long as the cell's source does.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

__all__ = [
    "COMPARED",
    "METADATA",
    "execute",
    "install_cell",
    "is_compared",
    "keep_outputs",
    "name_cells",
    "text_of",
    "text_only",
]

COMPARED = "nbval-check-output"
INSTALL = """\
# On Colab this installs the course's package; anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    {pip}"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def install_cell(pip: str) -> NotebookNode:
    """Return the cell that installs the package on Colab."""
    return new_code_cell(INSTALL.format(pip=pip))


def name_cells(notebook: NotebookNode) -> None:
    """Give each cell an id that depends on its text only, so that a change touches one cell."""
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def is_compared(cell: NotebookNode) -> bool:
    """Whether nbval is to compare the output of this cell."""
    return cell.cell_type == "code" and COMPARED in cell.metadata.get("tags", [])


def keep_outputs(notebook: NotebookNode, path: Path) -> None:
    """Copy the output of tagged cells that are the same in the notebook stored at `path`."""
    if not path.exists():
        return
    stored = nbformat.read(path, as_version=4).cells
    known = {(cell.id, cell.source): cell for cell in stored if is_compared(cell)}
    for cell in filter(is_compared, notebook.cells):
        if old := known.get((cell.id, cell.source)):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook, and keep only what its tagged cells printed.

    Raises:
        ValueError: if a tagged cell shows anything but text, which nbval could not compare.
    """
    from nbclient import NotebookClient

    metadata = copy.deepcopy(notebook.metadata)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "COURSE_PROGRESS": "off"})  # solutions are nobody's progress
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if is_compared(cell):
            cell.outputs = [text_only(output, cell) for output in cell.outputs]
        elif cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def text_only(output: NotebookNode, cell: NotebookNode) -> NotebookNode:
    """Return an output of a tagged cell; raise ValueError if it is not text, plain or with HTML."""
    shown = set(output.get("data", {"text/plain": ""}))
    is_text = shown in ({"text/plain"}, {"text/plain", "text/html"})
    if output.output_type == "error" or output.get("name") == "stderr" or not is_text:
        raise ValueError(f"a cell tagged {COMPARED} must show nothing but text:\n{cell.source}")
    return output


def text_of(notebook: NotebookNode) -> str:
    """Return a notebook as it is written to its file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"
