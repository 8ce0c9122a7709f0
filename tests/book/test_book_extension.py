"""The book's Sphinx extension: the map, the run time, and a cache that follows `course_lib`."""

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes

import book_ext
from chapter_numbers import chapter_number, number_chapters
from chapter_runtime import sentence
from course_map import Chapter, draw, outdated_maps, read_chapters
from repository import Repository

ROOT = Path(__file__).resolve().parents[2]
MAP = ROOT / "book" / "_data" / "course_map.yml"
SVG = "{http://www.w3.org/2000/svg}"


def test_map_has_the_chapters_in_reading_order_and_each_number_in_its_name():
    chapters = read_chapters(MAP)
    assert [int(c.page[:2]) for c in chapters] == [c.number for c in chapters]
    assert chapters[0].page == "01_ddpm"
    assert all(c.needs for c in chapters[1:])


def test_map_knows_every_numbered_page_of_the_book():
    pages = {path.stem for path in (ROOT / "book").glob("[0-9][0-9]_*.md")}
    assert pages <= {chapter.page for chapter in read_chapters(MAP)}


def test_map_links_pages_that_exist_and_marks_the_others_as_planned():
    chapters = [Chapter(1, "a", "A < B", (), "One"), Chapter(2, "b", "C", (1,), "Two")]
    tree = ET.fromstring(draw(chapters, {"a": "a.html"}.get))
    links = [link.get("href") for link in tree.iter(f"{SVG}a")]
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert links == ["a.html"]
    assert texts == ["One", "1. A < B", "Two", "2. Cplanned"]
    assert len([p for p in tree.iter(f"{SVG}path") if p.get("class") == "arc"]) == 1
    assert tree.get("aria-label")


def test_map_fits_its_frame():
    tree = ET.fromstring(draw(read_chapters(MAP), lambda page: None))
    width, height = map(float, tree.find(f"{SVG}svg").get("viewBox").split()[2:])
    for box in tree.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
    for arc in (p for p in tree.iter(f"{SVG}path") if p.get("class") == "arc"):
        assert float(arc.get("d").split("C")[1].split()[0]) > -0.35 * width


@pytest.mark.parametrize("needs", ["[2]", "[1]", "[0]"])
def test_map_refuses_a_chapter_that_needs_a_later_one(tmp_path, needs):
    entry = f"parts: [{{title: P, chapters: [{{page: a, title: A, needs: {needs}}}]}}]"
    (tmp_path / "map.yml").write_text(entry, encoding="utf-8")
    with pytest.raises(ValueError, match="do not come before it"):
        read_chapters(tmp_path / "map.yml")


def environment():
    """What the extension uses of Sphinx's environment."""
    return SimpleNamespace(
        course_map_pages={"intro", "gone"},
        found_docs={"intro", "01_ddpm"},
        nb_metadata={"01_ddpm": {}, "gone": {}},
    )


def test_map_is_drawn_again_when_pages_come_or_go():
    env = environment()
    assert outdated_maps(None, env, {"new"}, set(), set()) == ["intro"]
    assert outdated_maps(None, env, set(), set(), {"old"}) == ["intro"]
    assert outdated_maps(None, env, set(), {"changed"}, set()) == []


@pytest.mark.parametrize(
    ("seconds", "cores", "words"),
    [(73.6, 2, "in 74 s on 2 CPU cores"), (0.2, 1, "in 1 s on 1 CPU core "), (None, 2, "not")],
)
def test_run_time_in_words(seconds, cores, words):
    assert words in sentence(seconds, cores)


@pytest.fixture
def library(tmp_path):
    """A copy of the parts of a project that the cache depends on."""
    (tmp_path / "course_lib" / "nets").mkdir(parents=True)
    (tmp_path / "course_lib" / "nets" / "mlp.py").write_text("x = 1", encoding="utf-8")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["course_lib/nets/mlp.py", "course_lib/new.py", "requirements.txt"]
)
def test_cache_is_dropped_when_what_it_depends_on_changes(library, name):
    cache = library / "cache"
    book_ext.drop_stale_cache(cache, book_ext.library_hash(library))
    (cache / "executed").write_text("", encoding="utf-8")
    book_ext.drop_stale_cache(cache, book_ext.library_hash(library))
    assert (cache / "executed").exists()
    (library / name).write_text("x = 2", encoding="utf-8")
    book_ext.drop_stale_cache(cache, book_ext.library_hash(library))
    assert not (cache / "executed").exists()


def test_executed_pages_are_read_again_once_after_a_change():
    env = environment()
    assert book_ext.outdated_pages(None, env, set(), set(), set()) == ["01_ddpm"]
    assert book_ext.outdated_pages(None, env, set(), set(), set()) == []


def test_pages_know_the_address():
    config = SimpleNamespace(myst_substitutions={"own": "1"})
    book_ext.add_substitutions(None, config)
    repository = Repository.read(ROOT)
    assert config.myst_substitutions["repository_url"] == repository.url
    assert config.myst_substitutions["colab_pip"] == repository.pip
    assert config.myst_substitutions["own"] == "1"


def test_downloads_have_the_outputs_of_their_cells():
    new = nbformat.v4
    printed = new.new_output("stream", name="stdout", text="1")
    executed = new.new_notebook(
        cells=[
            new.new_markdown_cell("a"),
            new.new_code_cell("b", outputs=[printed], execution_count=7),
        ]
    )
    notebook = new.new_notebook(cells=[new.new_code_cell("install"), new.new_code_cell("b")])
    install, cell = book_ext.with_outputs(notebook, executed).cells
    assert (cell.outputs, cell.execution_count) == ([printed], 7)
    assert install.outputs == []


@pytest.mark.parametrize(
    ("name", "number"), [("07_solvers", 7), ("intro", None), ("api/core", None)]
)
def test_chapters_are_numbered_by_their_names(name, number):
    assert chapter_number(name) == number


def test_every_number_of_a_chapter_begins_with_that_of_its_name():
    title, link = nodes.title(), nodes.reference(refuri="x")
    title["secnumber"], link["secnumber"] = [2], [2, 1]
    env = SimpleNamespace(
        toc_secnumbers={"07_solvers": {"": (2,), "#a": (2, 1), "#b": ()}, "intro": {"": (1,)}},
        toc_fignumbers={
            "07_solvers": {"figure": {"f": (2, 3)}},
            "intro": {"figure": {"f": (1, 1)}},
        },
        titles={"07_solvers": title},
        tocs={"07_solvers": nodes.bullet_list("", link, nodes.reference(refuri="y"))},
    )
    assert number_chapters(None, env) == ["07_solvers"]
    assert env.toc_secnumbers["07_solvers"] == {"": (7,), "#a": (7, 1), "#b": ()}
    assert env.toc_fignumbers["07_solvers"] == {"figure": {"f": (7, 3)}}
    assert env.toc_secnumbers["intro"] == {"": (1,)}
    assert (title["secnumber"], link["secnumber"]) == ([7], [7, 1])
    assert number_chapters(None, env) == []
