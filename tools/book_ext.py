"""The book's own Sphinx extension: a fresh cache, directives, substitutions, downloads."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.read import read_myst_markdown_notebook
from myst_nb.core.utils import coalesce_streams
from nbformat import NotebookNode
from sphinx.application import Sphinx

from chapter_numbers import number_chapters
from chapter_runtime import ChapterRuntime, insert_runtime
from course_map import CourseMap, outdated_maps
from exercise_section import ExerciseSection
from kept_runs import cache_runs, folder_of
from library_hash import hash_of, library_hash
from notebooks import generate, make_pages, sources
from repository import Repository
from stored_notebook import text_of

ROOT = Path(__file__).resolve().parent.parent
STAMP = "course_lib.sha256"


def drop_stale_cache(cache: Path, current: str) -> None:
    """Empty the cache of executed pages if `course_lib` is not the one that they ran with.

    jupyter-cache looks at the text of a page only, so a change of the package would go unseen.
    """
    stamp = cache / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == current:
        return
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    stamp.write_text(current, encoding="utf-8")


def refresh_cache(app: Sphinx) -> None:
    """Drop the cache when `course_lib` has changed, before any page is read."""
    drop_stale_cache(Path(app.outdir).parent / ".jupyter_cache", library_hash(ROOT))


def page_cache(env) -> JupyterCacheBase:
    """Return the cache of executed pages."""
    return get_cache(env.mystnb_config.execution_cache_path)


def read_page(env, text: str) -> NotebookNode:
    """Return the notebook that MyST-NB makes of the text of a page."""
    return read_myst_markdown_notebook(text, config=env.myst_config)


def take_kept_runs(app: Sphinx, env, docnames) -> None:
    """Put what nbval ran into the cache, before any page is read."""
    read = partial(read_page, env)
    cache_runs(folder_of(ROOT), ROOT / "book", page_cache(env), library_hash(ROOT), read)


def outdated_pages(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Return the executed pages, if Sphinx has last read them with another `course_lib`."""
    current = library_hash(ROOT)
    if getattr(env, "course_lib_hash", None) == current:
        return []
    env.course_lib_hash = current
    return sorted(set(getattr(env, "nb_metadata", {})) & env.found_docs)


def add_substitutions(app: Sphinx, config) -> None:
    """Make the repository's address known to the pages, as `{{ repository_url }}` and so on."""
    repository = Repository.read(ROOT)
    known = {"repository_url": repository.url, "colab_pip": repository.pip}
    config.myst_substitutions = {**known, **config.myst_substitutions}
    # Sphinx writes all pages again when a setting changes, but not when a style sheet does.
    config.book_static = hash_of(ROOT, "book/_static/*")


def with_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """Copy what the cells of an executed page showed into the notebook made from the same page."""
    shown = {cell.source: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source in shown:
            cell.outputs = coalesce_streams(shown[cell.source].outputs)
            cell.execution_count = shown[cell.source].execution_count
    return notebook


def write_downloads(app: Sphinx, exception: Exception | None) -> None:
    """Let the download button give a notebook in plain Markdown, with the outputs of this build.

    MyST-NB writes notebooks too, but without outputs when these come from the cache.
    """
    if exception:
        return
    pages, repository, cache = make_pages(ROOT), Repository.read(ROOT), page_cache(app.env)
    for path in sources(ROOT):
        target = Path(app.outdir) / "_sources" / f"{path.stem}.ipynb"
        if path.stem in app.env.found_docs and target.exists():
            page = read_page(app.env, path.read_text(encoding="utf-8"))
            _, executed = cache.merge_match_into_notebook(page)
            notebook = generate(path, pages[path.stem], repository)
            filled = with_outputs(notebook, executed)
            target.write_text(text_of(filled), encoding="utf-8", newline="\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything with Sphinx."""
    app.add_directive("chapter-runtime", ChapterRuntime)
    app.add_directive("course-map", CourseMap)
    app.add_directive("exercises", ExerciseSection)
    app.add_config_value("book_static", "", "html")
    app.connect("config-inited", add_substitutions)
    app.connect("builder-inited", refresh_cache, priority=100)
    app.connect("env-get-outdated", outdated_pages)
    app.connect("env-get-outdated", outdated_maps)
    app.connect("env-before-read-docs", take_kept_runs)
    app.connect("env-get-updated", number_chapters, priority=900)
    app.connect("doctree-resolved", insert_runtime)
    app.connect("build-finished", write_downloads)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
