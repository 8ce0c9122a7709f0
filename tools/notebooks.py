"""Write every notebook from its MyST source.

Every page `book/*.md` that has code cells gets a notebook beside it, for Colab, Jupyter and nbval.
The exercises of a chapter, `exercises/NN_name.md`, become two: `exercises/NN_name.ipynb` with
stubs, and `solutions/NN_name.ipynb`.

    python tools/notebooks.py                      write all of them
    python tools/notebooks.py --check              fail, with the differences, if one is out of date
    python tools/notebooks.py --execute 01_ddpm solutions/01_ddpm
                                                   run these, and store the text of tagged cells

A cell tagged `nbval-check-output` keeps its printed text, and nbval compares it at every run. The
stored text stays for as long as the cell's source does: after a change of it, `--execute`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bibliography import read_bibliography
from exercise_notebooks import exercise_notebooks, pointer
from exercises import read_sheet
from plain_markdown import Page, figure_caption, translate
from repository import Repository, config
from stored_notebook import (
    METADATA,
    execute,
    install_cell,
    is_compared,
    keep_outputs,
    name_cells,
    text_of,
)

ROOT = Path(__file__).resolve().parent.parent
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
    pages = {
        n: Page(n, repository.pages, names, entries, labels, facts, tex, pointer(n, repository))
        for n in names
    }
    for path in sources(root):  # a first reading, for references to what comes later
        cells_of(path, pages[path.stem])
        with_exercises(root, pages[path.stem], repository)
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
    """Return the notebook of one page."""
    note = NOTE.format(name=path.stem, folder=repository.pages, colab=repository.colab)
    top = [new_markdown_cell(note), install_cell(repository.pip)]
    notebook = new_notebook(cells=[*top, *cells_of(path, page)], metadata=METADATA)
    name_cells(notebook)
    return notebook


def with_exercises(root: Path, page: Page, repository: Repository) -> dict[Path, NotebookNode]:
    """Return the exercise notebooks of a chapter with their files, none if it has no exercises."""
    source = root / "exercises" / f"{page.name}.md"
    if not source.exists():
        return {}
    made = exercise_notebooks(read_sheet(source), page, repository)
    return {root / folder / f"{page.name}.ipynb": notebook for folder, notebook in made.items()}


def generate_all(root: Path) -> Iterator[tuple[Path, NotebookNode]]:
    """Yield each notebook's file and what belongs in it, with the outputs that are stored there."""
    pages, repository = make_pages(root), Repository.read(root)
    for path in sources(root):
        page = pages[path.stem]
        made = {path.with_suffix(".ipynb"): generate(path, page, repository)}
        for target, notebook in (made | with_exercises(root, page, repository)).items():
            keep_outputs(notebook, target)
            yield target, notebook


def problems(path: Path, name: str, wanted: NotebookNode) -> list[str]:
    """Return what is wrong with the notebook stored at `path`, in words and as a difference."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = [
        f"{name}.ipynb: the cell starting {cell.source.splitlines()[0]!r} has no stored output; "
        f"run `python tools/notebooks.py --execute {name}`"
        for cell in wanted.cells
        if is_compared(cell) and cell.execution_count is None
    ]
    if text != text_of(wanted):
        lines = difflib.unified_diff(
            text.splitlines(), text_of(wanted).splitlines(), "stored", "from the source", n=1
        )
        found.append(f"{name}.ipynb is out of date: run `make notebooks`")
        found += list(lines)[:30]
    return found


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write, check or execute the notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--execute", nargs="*", metavar="NAME", help="run these (or all) and store")
    options, found = parser.parse_args(arguments), []
    wanted = {
        path.relative_to(root).with_suffix("").as_posix().removeprefix("book/"): (path, notebook)
        for path, notebook in generate_all(root)
    }
    run = list(wanted) if options.execute == [] else options.execute or []
    if unknown := set(run) - set(wanted):
        parser.error(f"unknown notebook {', '.join(unknown)}; allowed: {', '.join(wanted)}")
    for name, (path, notebook) in wanted.items():
        if name in run and any(map(is_compared, notebook.cells)):  # never a notebook with stubs
            execute(notebook, path.parent)
        if options.check:
            found += problems(path, name, notebook)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text_of(notebook), "utf-8", newline="\n")
    print("\n".join(found) or f"{len(wanted)} notebook(s) up to date")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
