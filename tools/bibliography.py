"""Read the book's BibTeX file for the notebooks, where Sphinx is not there to do it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Reference", "read_bibliography"]


class Reference(NamedTuple):
    """One entry: its authors in short, its year, its web address (or empty) and its full text."""

    authors: str
    year: str
    url: str
    full: str


def read_bibliography(path: Path) -> dict[str, Reference]:
    """Return the entries of a BibTeX file by their keys; none if there is no such file."""
    from pybtex.database import parse_file
    from pybtex.plugin import find_plugin

    if not path.exists():
        return {}
    style = find_plugin("pybtex.style.formatting", "plain")()
    text = find_plugin("pybtex.backends", "text")()
    found = {}
    for key, entry in parse_file(str(path)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [_surname(person, text) for person in people]
        authors = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        full = next(iter(style.format_entries([entry]))).text.render(text)
        found[key] = Reference(authors, entry.fields.get("year", "undated"), _url(entry), full)
    return found


def _surname(person, backend) -> str:
    """Return a last name with its `van` or `de`, without LaTeX's braces."""
    parts = person.rich_prelast_names + person.rich_last_names
    return " ".join(part.render(backend) for part in parts)


def _url(entry) -> str:
    """Return the address of an entry: its own, or the one that its DOI or arXiv number gives."""
    fields = entry.fields
    if "url" in fields:
        return fields["url"]
    if "doi" in fields:
        return f"https://doi.org/{fields['doi']}"
    return f"https://arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else ""
