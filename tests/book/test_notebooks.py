"""The generated notebooks: what they hold, and that a stale one is noticed."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest

import notebooks
import stored_notebook

ROOT = Path(__file__).resolve().parents[2]
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""
CHAPTER = """# A chapter

```{note}
By {eq}`later` and {eq}`first`, $\\E[x]$.
```

$$
a
$$ (first)

```{code-cell} ipython3
:tags: [nbval-check-output]

print("checked")
```

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-line
    caption: A line.
---
print("not checked")
```

$$
b
$$ (later)
"""


@pytest.fixture
def root(tmp_path):
    """A small book with one chapter and one page without code."""
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "book" / "01_a.md").write_text(HEADER + CHAPTER, encoding="utf-8")
    (tmp_path / "book" / "intro.md").write_text("# Only text", encoding="utf-8")
    return tmp_path


def read(root):
    return nbformat.read(root / "book" / "01_a.ipynb", as_version=4)


def edit(root, old, new):
    path = root / "book" / "01_a.md"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def test_only_pages_with_code_get_a_notebook(root):
    notebooks.main([], root)
    assert [p.name for p in (root / "book").glob("*.ipynb")] == ["01_a.ipynb"]


def test_cells_come_in_order_translated_with_the_install_cell_first(root):
    notebooks.main([], root)
    cells = read(root).cells
    assert [cell.cell_type[0] for cell in cells] == list("mcmccmm")
    assert "colab.research.google.com/github/" in cells[0].source
    assert cells[1].source.splitlines()[-1].strip().startswith("%pip install")
    assert "> **Note**" in cells[2].source
    assert "By (1.2) and (1.1), $\\mathbb{E}[x]$." in cells[2].source
    assert cells[3].source == 'print("checked")'
    assert cells[5].source == "*Fig. 1.1.* A line."
    assert "\\tag{1.2}" in cells[6].source


def test_install_cell_does_nothing_outside_colab(root):
    notebooks.main([], root)
    source = read(root).cells[1].source.replace("%pip", "raise SystemExit #")
    exec(source, {})


def test_a_second_run_changes_nothing(root):
    notebooks.main([], root)
    first = (root / "book" / "01_a.ipynb").read_bytes()
    notebooks.main([], root)
    assert (root / "book" / "01_a.ipynb").read_bytes() == first
    assert first.endswith(b"}\n")
    assert b"\r" not in first


def test_ids_are_unique_and_follow_the_text_of_their_cell(root):
    edit(root, "$$\nb", '```{code-cell} ipython3\nprint("not checked")\n```\n\n$$\nb')
    notebooks.main([], root)
    before = [cell.id for cell in read(root).cells]
    assert len(set(before)) == len(before) == 8
    edit(root, 'print("checked")', 'print("changed")')
    notebooks.main([], root)
    after = [cell.id for cell in read(root).cells]
    assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1


def test_execute_stores_the_text_of_tagged_cells_only(root):
    notebooks.main(["--execute", "01_a"], root)
    tagged, other = (c for c in read(root).cells if c.source.startswith("print"))
    assert tagged.outputs[0].text == "checked\n"
    assert tagged.execution_count
    assert (other.outputs, other.execution_count) == ([], None)
    assert notebooks.main(["--check"], root) == 0
    edit(root, "# A chapter", "# A better chapter")
    notebooks.main([], root)
    assert notebooks.main(["--check"], root) == 0
    assert "checked\\n" in (root / "book" / "01_a.ipynb").read_text(encoding="utf-8")


def test_a_tagged_cell_must_show_text():
    cell = nbformat.v4.new_code_cell("plot()")
    picture = nbformat.v4.new_output("display_data", {"text/plain": "", "image/png": ""})
    markup = nbformat.v4.new_output("display_data", {"text/html": ""})
    warning = nbformat.v4.new_output("stream", name="stderr", text="careful")
    for output in (picture, markup, warning):
        with pytest.raises(ValueError, match="nothing but text"):
            stored_notebook.text_only(output, cell)
    printed = nbformat.v4.new_output("stream", name="stdout", text="1")
    both = nbformat.v4.new_output("display_data", {"text/plain": "1", "text/html": "<b>1</b>"})
    for output in (printed, both):
        assert stored_notebook.text_only(output, cell) is output


def test_output_is_kept_only_while_the_source_is_the_same(tmp_path):
    new = nbformat.v4

    def notebook(source, **more):
        tags = {"tags": [stored_notebook.COMPARED]}
        return new.new_notebook(cells=[new.new_code_cell(source, id="a", metadata=tags, **more)])

    stored = notebook("1", execution_count=3)
    (tmp_path / "a.ipynb").write_text(stored_notebook.text_of(stored), encoding="utf-8")
    for source, count in (("1", 3), ("2", None)):
        wanted = notebook(source)
        stored_notebook.keep_outputs(wanted, tmp_path / "a.ipynb")
        assert wanted.cells[0].execution_count == count


def test_execution_notes_no_progress_and_keeps_the_metadata(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    tags = {"tags": [stored_notebook.COMPARED]}
    code = "import os; print(os.environ['COURSE_PROGRESS'])"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code, metadata=tags)],
        metadata={**stored_notebook.METADATA, "course_lib": {"chapter": "a"}},
    )
    stored_notebook.execute(notebook, tmp_path)
    assert notebook.cells[0].outputs[0].text == "off\n"
    assert notebook.metadata == {**stored_notebook.METADATA, "course_lib": {"chapter": "a"}}


def test_an_unknown_name_is_refused(root, capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["--execute", "02_b"], root)
    assert "unknown notebook 02_b; allowed: 01_a" in capsys.readouterr().err


def test_check_names_a_missing_output(root, capsys):
    notebooks.main([], root)
    assert notebooks.main(["--check"], root) == 1
    assert "--execute 01_a" in capsys.readouterr().out


def test_check_shows_what_is_out_of_date_and_writes_nothing(root, capsys):
    edit(root, ":tags: [nbval-check-output]\n", "")
    notebooks.main([], root)
    assert notebooks.main(["--check"], root) == 0
    edit(root, "# A chapter", "# Another title")
    before = (root / "book" / "01_a.ipynb").read_bytes()
    assert notebooks.main(["--check"], root) == 1
    shown = capsys.readouterr().out
    assert "01_a.ipynb is out of date" in shown
    assert "Another title" in shown
    assert (root / "book" / "01_a.ipynb").read_bytes() == before


def test_check_notices_an_edited_and_a_missing_notebook(root):
    edit(root, ":tags: [nbval-check-output]\n", "")
    notebooks.main([], root)
    path = root / "book" / "01_a.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"][2]["source"] = ["edited by hand"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert notebooks.main(["--check"], root) == 1
    path.unlink()
    assert notebooks.main(["--check"], root) == 1


@pytest.mark.parametrize("path", notebooks.sources(ROOT), ids=lambda path: path.stem)
def test_code_of_the_book_survives_the_round_trip(path):
    import jupytext

    stored = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    source = [c.source for c in jupytext.read(path).cells if c.cell_type == "code"]
    assert [c.source for c in stored.cells if c.cell_type == "code"][1:] == source
