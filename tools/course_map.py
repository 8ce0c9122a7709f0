"""The `{course-map}` directive: the course as a graph, drawn as SVG in the page.

One drawing serves both a desktop and a phone: chapters stand below each other in reading order, and
an arc joins each to those it builds on. The colours come from the theme, by classes in `book.css`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

__all__ = ["Chapter", "CourseMap", "draw", "outdated_maps", "read_chapters"]

WIDTH, ROW, LEFT, HEIGHT, GAP = 390, 44, 100, 34, 40


class Chapter(NamedTuple):
    """One node; `needs` holds the numbers of the chapters that it builds on."""

    number: int
    page: str
    title: str
    needs: tuple[int, ...]
    part: str


def read_chapters(path: Path) -> list[Chapter]:
    """Read the chapters from a YAML file.

    Raises:
        ValueError: if a chapter needs one that does not come before it.
    """
    chapters: list[Chapter] = []
    for part in yaml.safe_load(path.read_text(encoding="utf-8"))["parts"]:
        for entry in part["chapters"]:
            number, needs = len(chapters) + 1, tuple(entry["needs"])
            if late := [need for need in needs if not 0 < need < number]:
                raise ValueError(f"chapter {number} needs {late}, which do not come before it")
            chapters.append(Chapter(number, entry["page"], entry["title"], needs, part["title"]))
    return chapters


def draw(chapters: list[Chapter], link: Callable[[str], str | None]) -> str:
    """Return the SVG of the map; `link` gives the address of a page, or None if it is planned."""
    top, marks, y, part = {}, [], 0, ""
    for chapter in chapters:
        if chapter.part != part:
            part = chapter.part
            y += GAP
            marks.append(f'<text class="part" x="{LEFT}" y="{y - 12}">{escape(part)}</text>')
        top[chapter.number] = y
        marks.append(_box(chapter, y, link(chapter.page)))
        y += ROW
    arcs = [_arc(top[n], top[c.number], y) for c in chapters for n in c.needs]
    body = "\n".join([*arcs, *marks])
    return (
        '<nav class="course-map" aria-label="Map of the course">\n'
        f'<svg viewBox="0 0 {WIDTH} {y}" xmlns="http://www.w3.org/2000/svg">\n'
        '<defs><marker id="map-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>\n'
        f"{body}\n</svg>\n</nav>"
    )


def _box(chapter: Chapter, y: float, address: str | None) -> str:
    """Return one chapter: a link if its page exists, else a grey box."""
    label = f"{chapter.number}. {escape(chapter.title)}"
    if not address:
        label += '<tspan class="planned-mark" dx="6">planned</tspan>'
    before = ", ".join(map(str, chapter.needs))
    box = (
        f"<title>{f'Builds on chapter {before}' if before else 'Start here'}</title>"
        f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 2}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{LEFT + 12}" y="{y + HEIGHT / 2 + 5}">{label}</text>'
    )
    if address:
        return f'<a class="chapter" href="{escape(address)}">{box}</a>'
    return f'<g class="chapter planned">{box}</g>'


def _arc(source: float, target: float, total: float) -> str:
    """Return the arc from one chapter to one that builds on it; longer ones reach further out."""
    start, end = source + 0.7 * HEIGHT, target + 0.3 * HEIGHT
    bend = LEFT - 16 - (1.7 * LEFT) * ((end - start) / total) ** 0.75
    curve = f"M{LEFT} {start:.1f} C{bend:.1f} {start:.1f} {bend:.1f} {end:.1f} {LEFT} {end:.1f}"
    return f'<path class="arc" d="{curve}" marker-end="url(#map-arrow)"/>'


class CourseMap(SphinxDirective):
    """Draw the map from the YAML file that the argument names, relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the map as HTML, and let the page depend on its file."""
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        if not hasattr(self.env, "course_map_pages"):
            self.env.course_map_pages = set()
        self.env.course_map_pages.add(self.env.docname)
        svg = draw(read_chapters(Path(path)), self._address)
        return [nodes.raw("", svg, format="html")]

    def _address(self, page: str) -> str | None:
        if page not in self.env.found_docs:
            return None
        return self.env.app.builder.get_relative_uri(self.env.docname, page)


def outdated_maps(app, env, added, changed, removed) -> list[str]:
    """Let Sphinx read the pages with a map again when a page has come or gone."""
    pages = getattr(env, "course_map_pages", set()) & env.found_docs
    return sorted(pages) if added or removed else []
