"""Write the notebooks of the book from their MyST sources.

Every page `book/*.md` that has code cells gets a notebook beside it, for Colab, Jupyter and nbval.

    python tools/notebooks.py                      write all of them
    python tools/notebooks.py --check              fail, with the differences, if one is out of date
    python tools/notebooks.py --execute 01_ddpm    run one, and store the text of its tagged cells

A cell tagged `nbval-check-output` keeps its printed text, and nbval compares it at every run. The
stored text stays for as long as the cell's source does: after a change of it, `--execute`.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bibliography import read_bibliography
from plain_markdown import Page, figure_caption, translate
from repository import Repository, config

ROOT = Path(__file__).resolve().parent.parent
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
NOTE = """\
*This notebook is generated from [`{name}.md`]({folder}/{name}.md): change that file, not this one.*
[Open it in Colab]({colab}/{name}.ipynb)."""


def sources(root: Path) -> list[Path]:
    """Return the pages that have code cells."""
    pages = sorted((root / "book").glob("*.md"))
    return [page for page in pages if "\nkernelspec:" in page.read_text(encoding="utf-8")]


def make_pages(root: Path) -> dict[str, Page]:
    """Return what the translation of each page needs; numbers and titles of all pages are known."""
    repository = Repository.read(root)
    names = tuple(path.stem for path in sources(root))
    entries = read_bibliography(root / "book" / "references.bib")
    tex = config(root)["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]
    facts = {"repository_url": repository.url, "colab_pip": repository.pip}
    labels: dict[str, str] = {}
    for path in sorted((root / "book").glob("*.md")):
        title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        labels[path.stem] = title[1] if title else path.stem
    pages = {n: Page(n, repository.pages, names, entries, labels, facts, tex) for n in names}
    for path in sources(root):  # a first reading, for references to what comes later
        cells_of(path, pages[path.stem])
        pages[path.stem].counts.clear()
    return pages


def cells_of(path: Path, page: Page) -> list[NotebookNode]:
    """Return the cells of a page, its text translated and the captions of figures written out."""
    cells = []
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "markdown":
            cells.append(new_markdown_cell(page.expand(translate(cell.source, page))))
            continue
        tags = cell.metadata.get("tags", [])
        cells.append(new_code_cell(cell.source, metadata={"tags": tags} if tags else {}))
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if caption := figure.get("caption"):
            text = figure_caption(translate(caption, page), figure.get("name"), page)
            cells.append(new_markdown_cell(text))
    return [cell for cell in cells if cell.source]


def generate(path: Path, page: Page, repository: Repository) -> NotebookNode:
    """Return the notebook of one page, with the text that its tagged cells printed last."""
    note = NOTE.format(name=path.stem, folder=repository.pages, colab=repository.colab)
    install = new_code_cell(INSTALL.format(pip=repository.pip))
    notebook = new_notebook(cells=[new_markdown_cell(note), install, *cells_of(path, page)])
    notebook.metadata = METADATA
    name_cells(notebook)
    stored = path.with_suffix(".ipynb")
    if stored.exists():
        keep_outputs(notebook, nbformat.read(stored, as_version=4))
    return notebook


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


def keep_outputs(notebook: NotebookNode, stored: NotebookNode) -> None:
    """Copy the printed text of tagged cells whose source is the same in both notebooks."""
    known = {cell.id: cell for cell in stored.cells if is_compared(cell)}
    for cell in filter(is_compared, notebook.cells):
        if old := known.get(cell.id):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook, and keep only what its tagged cells printed.

    Raises:
        ValueError: if a tagged cell shows anything but text, which nbval could not compare.
    """
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if is_compared(cell):
            cell.outputs = [text_only(output, cell) for output in cell.outputs]
        elif cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def text_only(output: NotebookNode, cell: NotebookNode) -> NotebookNode:
    """Return an output of a tagged cell; raise ValueError if it is not plain text."""
    shown = set(output.get("data", {"text/plain": ""}))
    if output.output_type == "error" or output.get("name") == "stderr" or shown != {"text/plain"}:
        raise ValueError(f"a cell tagged {COMPARED} must show nothing but text:\n{cell.source}")
    return output


def text_of(notebook: NotebookNode) -> str:
    """Return a notebook as it is written to its file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def problems(path: Path, wanted: NotebookNode) -> list[str]:
    """Return what is wrong with the notebook beside `path`, in words and as a difference."""
    stored = path.with_suffix(".ipynb")
    text = stored.read_text(encoding="utf-8") if stored.exists() else ""
    found = [
        f"{stored.name}: the cell starting {cell.source.splitlines()[0]!r} has no stored output; "
        f"run `python tools/notebooks.py --execute {path.stem}`"
        for cell in wanted.cells
        if is_compared(cell) and cell.execution_count is None
    ]
    if text != text_of(wanted):
        lines = difflib.unified_diff(
            text.splitlines(), text_of(wanted).splitlines(), "stored", "from the source", n=1
        )
        found.append(f"{stored.name} is out of date: run `make notebooks`")
        found += list(lines)[:30]
    return found


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write, check or execute the notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--execute", nargs="*", metavar="NAME", help="run these (or all) and store")
    options = parser.parse_args(arguments)
    pages, repository, found = make_pages(root), Repository.read(root), []
    run = options.execute if options.execute or options.execute is None else list(pages)
    for path in sources(root):
        notebook = generate(path, pages[path.stem], repository)
        if run and path.stem in run:
            execute(notebook, path.parent)
        if options.check:
            found += problems(path, notebook)
        else:
            path.with_suffix(".ipynb").write_text(text_of(notebook), "utf-8", newline="\n")
    print("\n".join(found) or f"{len(pages)} notebook(s) up to date")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
