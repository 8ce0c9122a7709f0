"""One run for two uses: what nbval ran fills the cache of the book, and nothing stale does."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_client import KernelManager
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook, new_output

import book_ext
import kept_runs
import notebooks
import stored_notebook
from library_hash import library_hash

ROOT = Path(__file__).resolve().parents[2]
FRONT = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n\n"
PAGE = FRONT + "# A\n\n```{code-cell} ipython3\n:tags: [hide-input]\n1 + 1\n```\n"
# All that a kernel can say, each in a cell of its own.
CELLS = [
    "for i in range(2):\n    print(i, flush=True)",
    "import sys\nprint('careful', file=sys.stderr)",
    "40 + 2",
    "from IPython.display import HTML, clear_output, display",
    "print('gone')\nclear_output()\nprint('stays')",
    "handle = display(HTML('<b>first</b>'), display_id='me')",
    "handle.update(HTML('<b>second</b>'))",
    "from ipywidgets import IntSlider, Output\nout = Output()\nwith out:\n    print('inside')",
    "display(IntSlider(3), out)",
]


def notebook(*sources):
    """A notebook as the generator makes them, its first cell the one for Colab."""
    cells = [stored_notebook.install_cell("%pip install x"), *map(new_code_cell, sources)]
    return new_notebook(cells=cells, metadata=stored_notebook.METADATA)


def executed(*sources):
    """What nbval leaves of a page whose last cell gives 2."""
    run = notebook(*sources)
    data = {"text/plain": "2"}
    run.cells[-1].outputs = [new_output("execute_result", data, execution_count=None)]
    run.metadata["widgets"] = {"state": {}}
    return run


@pytest.fixture
def book(tmp_path):
    """A book of one page."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "01_a.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def take(root, library="now"):
    """Let a build take the runs; return the names of the pages, and the cache."""
    cache, folder = get_cache(str(root / "cache")), kept_runs.folder_of(root)
    read = read_myst_markdown_notebook
    return kept_runs.cache_runs(folder, root / "book", cache, library, read), cache


def test_a_run_becomes_the_result_of_its_page(book):
    kept_runs.write_run(kept_runs.folder_of(book), "01_a", executed("1 + 1"), "now", 12.5)
    names, cache = take(book)
    page = read_myst_markdown_notebook(PAGE)
    found, result = cache.merge_match_into_notebook(page)
    cell = result.cells[-1]
    assert names == ["01_a"]
    assert cell.outputs[0].data["text/plain"] == "2"
    assert cell.execution_count == cell.outputs[0].execution_count == 1
    assert cell.metadata.tags == ["hide-input"]
    assert result.metadata.widgets == {"state": {}}
    assert cache.get_cache_record(found).data["execution_seconds"] == 12.5
    assert not kept_runs.folder_of(book).exists()


def test_a_new_run_takes_the_place_of_an_old_one(book):
    for text in ("2", "3"):
        run = executed("1 + 1")
        run.cells[-1].outputs[0].data["text/plain"] = text
        kept_runs.write_run(kept_runs.folder_of(book), "01_a", run, "now", 1.0)
        names, cache = take(book)
        _, result = cache.merge_match_into_notebook(read_myst_markdown_notebook(PAGE))
        assert (names, result.cells[-1].outputs[0].data["text/plain"]) == (["01_a"], text)


@pytest.mark.parametrize(
    ("name", "sources", "library"),
    [
        ("01_a", ["1 + 1"], "another library"),
        ("01_a", ["1 + 2"], "now"),
        ("01_a", ["1 + 1", "2"], "now"),
        ("01_a", [], "now"),
        ("02_gone", ["1 + 1"], "now"),
    ],
)
def test_a_run_of_other_code_is_thrown_away(book, name, sources, library):
    kept_runs.write_run(kept_runs.folder_of(book), name, notebook(*sources), library, 1.0)
    names, cache = take(book)
    assert names == []
    assert cache.list_cache_records() == []
    assert not kept_runs.folder_of(book).exists()


def test_without_runs_or_with_half_a_file_nothing_is_taken(book):
    assert take(book)[0] == []
    kept_runs.folder_of(book).mkdir(parents=True)
    (kept_runs.folder_of(book) / "01_a.unfinished").write_text("{", encoding="utf-8")
    assert take(book)[0] == []


@pytest.mark.parametrize("path", notebooks.sources(ROOT), ids=lambda path: path.stem)
def test_the_notebook_beside_a_page_has_the_code_that_the_build_runs(path):
    page = read_myst_markdown_notebook(path.read_text(encoding="utf-8"))
    assert kept_runs.fill(page, nbformat.read(path.with_suffix(".ipynb"), as_version=4))


@pytest.mark.parametrize("path", notebooks.sources(ROOT), ids=lambda path: path.stem)
def test_no_page_lives_on_what_the_cell_for_colab_imports(path):
    cells = kept_runs.code_cells(nbformat.read(path.with_suffix(".ipynb"), as_version=4))
    code = "\n".join(cell.source for cell in cells[1:])
    assert not re.search(r"\bsys\.", code) or re.search(r"^import .*\bsys\b", code, re.MULTILINE)


def nbval(root, *names):
    """Run notebooks of a book like the stage does; return the exit status."""
    ini = f"[pytest]\naddopts = -p no:cacheprovider\npythonpath = {(ROOT / 'tools').as_posix()}\n"
    (root / "pytest.ini").write_text(ini, encoding="utf-8")
    options = ["--nbval-lax", "-p", "nbval_keep", "-p", "no:randomly", "-q"]
    paths = [str(root / name) for name in names]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode


def without_ids(made):
    """Outputs and the states of widgets, without the names that are drawn anew in each run."""
    text = nbformat.writes(new_notebook(metadata={"widgets": made.metadata.get("widgets", {})}))
    states = sorted(re.findall(r'"(?:_model_name|text|value)": .*', text))
    outputs = copy.deepcopy([cell.outputs for cell in kept_runs.code_cells(made)])
    for output in (o for of_cell in outputs for o in of_cell):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        output.pop("execution_count", None)
    return outputs, states


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A book of a page that passes and one whose compared cell fails, after nbval ran it."""
    root, wrong = tmp_path_factory.mktemp("ran"), notebook("print(1)", "2")
    wrong.cells[1].metadata["tags"] = [stored_notebook.COMPARED]
    wrong.cells[1].outputs = [new_output("stream", name="stdout", text="0\n")]
    wrong.cells[1].execution_count = 1
    made = {"book/01_a": notebook(*CELLS), "book/02_b": wrong, "solutions/03_c": notebook("1")}
    for name, cells in made.items():
        (root / name).parent.mkdir(exist_ok=True)
        nbformat.write(cells, root / f"{name}.ipynb")
    for old in ("nbval/01_old.ipynb", ".jupyter_cache/executed"):
        (root / "_build" / old).mkdir(parents=True)
    assert nbval(root, *(f"{name}.ipynb" for name in made)) == 1
    return root


def test_pages_that_pass_are_kept_and_earlier_runs_are_forgotten(ran):
    assert [path.name for path in (ran / "_build").iterdir()] == ["nbval"]
    assert [path.name for path in kept_runs.folder_of(ran).iterdir()] == ["01_a.ipynb"]


def test_what_is_kept_is_what_the_build_would_have_got(ran):
    kept = nbformat.read(kept_runs.folder_of(ran) / "01_a.ipynb", as_version=4)
    made = notebook(*CELLS)
    # Sockets in files: two kernels that start at once may choose the same port.
    manager = KernelManager(kernel_name="python3", transport="ipc")
    NotebookClient(made, km=manager, record_timing=False, timeout=120).execute()
    assert without_ids(kept) == without_ids(made)
    assert "inside" in str(without_ids(kept)[1])
    assert kept.metadata.language_info == made.metadata.language_info
    assert kept.metadata[kept_runs.FACTS]["library"] == library_hash(ran)
    assert 0 < kept.metadata[kept_runs.FACTS]["seconds"] < 600


def test_downloads_have_outputs_that_came_from_the_cache(book, monkeypatch):
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    (book / "_config.yml").write_text(config, encoding="utf-8")
    kept_runs.write_run(kept_runs.folder_of(book), "01_a", executed("1 + 1"), "now", 1.0)
    take(book)
    (book / "html" / "_sources").mkdir(parents=True)
    target = book / "html" / "_sources" / "01_a.ipynb"
    target.touch()
    env = SimpleNamespace(
        found_docs={"01_a"},
        myst_config=MdParserConfig(),
        mystnb_config=SimpleNamespace(execution_cache_path=str(book / "cache")),
    )
    monkeypatch.setattr(book_ext, "ROOT", book)
    book_ext.write_downloads(SimpleNamespace(outdir=str(book / "html"), env=env), None)
    cell = nbformat.read(target, as_version=4).cells[-1]
    assert (cell.source, cell.outputs[0].data["text/plain"]) == ("1 + 1", "2")
