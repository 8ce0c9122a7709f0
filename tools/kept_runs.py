"""One run of a page for two uses: nbval leaves what it ran, and the book build takes it.

`nbval_keep` writes a file for each page, since its workers must not share a database. The build
puts these files into its cache, from one process, before it reads a page. It takes a run only if
the page has the same code still and `course_lib` is the same; else it runs the page itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from nbformat import NotebookNode

__all__ = ["cache_runs", "folder_of", "write_run"]

FACTS = "kept_run"
MERGED = ("language_info", "widgets")  # what the cache gives back besides the code cells


def folder_of(root: Path) -> Path:
    """Return where the runs wait for the build."""
    return root / "_build" / "nbval"


def write_run(folder: Path, name: str, run: NotebookNode, library: str, seconds: float) -> None:
    """Write an executed page with the hash of the library it ran with; all of it or nothing."""
    run.metadata[FACTS] = {"library": library, "seconds": seconds}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.unfinished"
    unfinished.write_text(nbformat.writes(run), encoding="utf-8")
    os.replace(unfinished, folder / f"{name}.ipynb")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fill(page: NotebookNode, run: NotebookNode) -> bool:
    """Copy what a run showed into the page; return False, and do nothing, if its code differs.

    The first cell of the run is the one that installs the package on Colab; a page has none.
    """
    cells, ran = code_cells(page), code_cells(run)[1:]
    if [cell.source for cell in cells] != [cell.source for cell in ran]:
        return False
    for count, (cell, source) in enumerate(zip(cells, ran, strict=True), start=1):
        cell.outputs, cell.execution_count = source.outputs, count  # nbval does not count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    page.metadata.update({key: run.metadata[key] for key in MERGED if key in run.metadata})
    return True


def cache_runs(
    folder: Path,
    book: Path,
    cache: JupyterCacheBase,
    library: str,
    read: Callable[[str], NotebookNode],
) -> list[str]:
    """Put the runs that fit into a cache, and remove them all; return the names of these pages.

    Args:
        folder: where the runs are.
        book: where the pages are, `NAME.md`.
        cache: of executed pages.
        library: hash of the library as it is now.
        read: makes a notebook of the text of a page.
    """
    taken = []
    for path in sorted(folder.glob("*.ipynb")):
        run, source = nbformat.read(path, as_version=4), book / f"{path.stem}.md"
        facts = run.metadata[FACTS]
        if facts["library"] != library or not source.exists():
            continue
        page = read(source.read_text(encoding="utf-8"))
        if fill(page, run):
            data = {"execution_seconds": facts["seconds"]}
            bundle = CacheBundleIn(page, str(source), data=data)
            cache.cache_notebook_bundle(bundle, overwrite=True)
            taken.append(path.stem)
    shutil.rmtree(folder, ignore_errors=True)
    return taken
