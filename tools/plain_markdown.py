"""Translate MyST Markdown into the Markdown that Jupyter, Colab and GitHub show.

MyST's directives (boxes, theorems, figures, numbered equations) and roles (references, citations)
are raw text in a plain notebook. Here each becomes the nearest plain form, with the numbers that
the book gives it. A directive or role without a rule is an error: no reader meets raw MyST.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from bibliography import Reference

__all__ = ["Page", "translate"]

FENCE = re.compile(r"^ *(?P<fence>:{3,}|`{3,}|~{3,})(\{(?P<name>[\w:.-]+)\})?(?P<argument>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):\s*(?P<value>.*)$")
ROLE = re.compile(r"\{(?P<name>[a-z][\w:.-]*)\}`(?P<text>[^`]+)`")
TITLED = re.compile(r"^(?P<title>.*?)\s*<(?P<target>[^>]+)>$", re.DOTALL)
LABELLED_MATH = re.compile(r"\$\$(?P<tex>.+?)\$\$[ \t]*\((?P<label>[\w:.-]+)\)", re.DOTALL)
BARE_MATH = re.compile(r"^\\begin\{(equation|align|gather|multline)\}", re.MULTILINE)
SECTION = re.compile(r"^\((?P<label>[\w:.-]+)\)=\n+(#+ (?P<title>.*))?", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\((?P<page>[\w/-]+)\.md(?P<anchor>#[\w-]+)?\)")

BOXES = {
    **{name: name.capitalize() for name in ("note", "tip", "hint", "important", "warning")},
    **{name: name.capitalize() for name in ("caution", "attention", "danger", "error")},
    "seealso": "See also",
}
NUMBERED = ("theorem", "lemma", "definition", "proposition", "corollary", "algorithm", "remark")
NUMBERED += ("example", "axiom", "conjecture", "exercise")
UNTITLED = ("admonition", "dropdown", "margin", "sidebar", "epigraph", "topic", "card")
DROPPED = ("chapter-runtime", "course-map", "tableofcontents", "contents", "raw", "index")
CODE_ROLES = ("code", "eval", "func", "class", "meth", "mod", "attr", "data", "exc")


@dataclass
class Page:
    """What the translation of one page needs to know, and the labels that it finds.

    Args:
        name: file name without its ending, such as `01_ddpm`; its digits number the chapter.
        repository: web address of the folder that holds the pages.
        notebooks: names of the pages that have a notebook.
        citations: citation key -> the entry of the bibliography.
        labels: label -> text of a reference to it, such as `(1.3)`; shared by all pages.
        substitutions: name -> text for `{{ name }}`.
        macros: name of a TeX macro without arguments -> its text; only the book knows them.
        exercises: the sentence that stands for the exercises: they have a notebook of their own.
    """

    name: str
    repository: str = ""
    notebooks: tuple[str, ...] = ()
    citations: dict[str, Reference] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    substitutions: dict[str, str] = field(default_factory=dict)
    macros: dict[str, str] = field(default_factory=dict)
    exercises: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    cited: set[str] = field(default_factory=set)

    def number(self, kind: str) -> str:
        """Return the next number of this kind of thing, such as `1.3`."""
        self.counts[kind] += 1
        chapter = re.match(r"\d+", self.name)
        return f"{int(chapter[0])}.{self.counts[kind]}" if chapter else str(self.counts[kind])

    def note(self, label: str | None, text: str) -> None:
        """Remember the text of references to this label."""
        if label:
            self.labels[label] = text

    def expand(self, text: str) -> str:
        """Write the book's own TeX macros out."""
        return re.sub(r"\\([A-Za-z]+)", lambda m: self.macros.get(m[1], m[0]), text)

    def find(self, label: str) -> str:
        """Return the text of a reference; before all pages are read, the label itself."""
        return self.labels.get(label, label)


def translate(text: str, page: Page) -> str:
    """Return `text` in plain Markdown; labels and counts are kept in `page`.

    Raises:
        ValueError: if a directive or role has no translation, or a fence is not closed.
    """
    parts, plain, lines = [], [], text.split("\n")
    while lines:
        line = lines.pop(0)
        fence = FENCE.match(line)
        if not fence:
            plain.append(line)
            continue
        body = _take_body(lines, fence["fence"], page)
        parts.append(_inline("\n".join(plain), page))
        plain = []
        if fence["name"]:
            parts.append(_directive(fence["name"], fence["argument"].strip(), body, page))
        else:
            indent = line[: len(line) - len(line.lstrip())]
            parts.append("\n".join([line, *body, indent + fence["fence"]]))
    parts.append(_inline("\n".join(plain), page))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip("\n")


def _take_body(lines: list[str], fence: str, page: Page) -> list[str]:
    """Remove the lines up to the closing fence from `lines` and return them."""
    for i, line in enumerate(lines):
        mark = line.strip()
        if mark.startswith(fence) and not mark.strip(fence[0]):
            body = lines[:i]
            del lines[: i + 1]
            return body
    raise ValueError(f"{page.name}: the fence {fence!r} is not closed")


def _options(body: list[str]) -> tuple[dict[str, str], str]:
    """Split a directive's `:key: value` lines from its text."""
    options = {}
    while body and (option := OPTION.match(body[0].strip())):
        options[option["key"]] = option["value"]
        body = body[1:]
    return options, "\n".join(body).strip("\n")


def _directive(name: str, argument: str, lines: list[str], page: Page) -> str:
    """Return the plain form of one directive."""
    options, body = _options(lines)
    if name in DROPPED:
        return ""
    if name == "exercises":
        return page.exercises
    if name == "math":
        return _equation(body, options.get("label"), page)
    if name in ("figure", "image"):
        return _figure(argument, options, translate(body, page), page)
    if name in ("code", "code-block"):
        return f"```{argument}\n{body}\n```"
    if name == "bibliography":
        return "\n".join(f"- {page.citations[key].full}" for key in sorted(page.cited))
    if name == "prf:proof":
        return f"*Proof.* {translate(body, page)} ∎"
    return _box(name, argument, options, body, page)


def _box(name: str, argument: str, options: dict[str, str], body: str, page: Page) -> str:
    """Return a box with its title, folded if the book folds it."""
    if name in BOXES:  # text on the first line belongs to the body
        argument, body = BOXES[name], "\n\n".join(filter(None, [argument, body]))
    title = _title(name, _inline(argument, page), options, page)
    folded = name == "dropdown" or "dropdown" in options.get("class", "")
    return (_details if folded else _quote)(title, translate(body, page))


def _title(name: str, title: str, options: dict[str, str], page: Page) -> str:
    """Return the title of a box, such as `Theorem 1.2 (Tweedie)`, and remember its label."""
    kind = name.removeprefix("prf:")
    if name in BOXES or name in UNTITLED:
        return title
    if kind not in NUMBERED:
        raise ValueError(f"{page.name}: no plain form is known for the directive {{{name}}}")
    heading = kind.capitalize()
    if "nonumber" not in options:
        heading += f" {page.number(kind)}"
    page.note(options.get("label"), heading)
    return f"{heading} ({title})" if title else heading


def _equation(tex: str, label: str | None, page: Page) -> str:
    """Return display mathematics, with its number if it has a label."""
    if not label:
        return f"$$\n{tex.strip()}\n$$"
    number = page.number("equation")
    page.note(label, f"({number})")
    return f"$$\n{tex.strip()}\n\\tag{{{number}}}\n$$"


def _figure(path: str, options: dict[str, str], caption: str, page: Page) -> str:
    """Return an image and, below it, its caption."""
    image = f"![{options.get('alt', '')}]({path})"
    return f"{image}\n\n{figure_caption(caption, options.get('name'), page)}" if caption else image


def figure_caption(caption: str, name: str | None, page: Page) -> str:
    """Return the caption of a figure with its number."""
    number = f"Fig. {page.number('figure')}"
    page.note(name, number)
    return f"*{number}.* {caption}"


def _quote(title: str, body: str) -> str:
    """Return a box: a block quote whose first line is the title.

    A formula is put on one line: Jupyter would take the `>` of the next line for part of it.
    """
    body = re.sub(r"\$\$.+?\$\$", lambda m: " ".join(m[0].split()), body, flags=re.DOTALL)
    lines = [f"**{title}**", "", *body.split("\n")] if title else body.split("\n")
    return "\n".join(["", *(f"> {line}".rstrip() for line in lines), ""])


def _details(title: str, body: str) -> str:
    """Return text that is folded away until the reader opens it."""
    return f"<details>\n<summary>{title or 'More'}</summary>\n\n{body}\n\n</details>\n"


def _inline(text: str, page: Page) -> str:
    """Translate everything that is not a directive."""
    if bare := BARE_MATH.search(text):
        raise ValueError(f"{page.name}: number {bare[0]} with a math directive that has a label")
    text = re.sub(r"^%.*\n?", "", text, flags=re.MULTILINE)
    text = LABELLED_MATH.sub(lambda m: _equation(m["tex"], m["label"], page), text)
    text = SECTION.sub(lambda m: _section(m, page), text)
    text = ROLE.sub(lambda m: _role(m["name"], m["text"], page), text)
    text = re.sub(r"\[\]\(#?([\w:.-]+)\)", lambda m: page.find(m[1]), text)
    text = PAGE_LINK.sub(lambda m: f"]({_address(m['page'], page)}{m['anchor'] or ''})", text)
    text = re.sub(r"(\]\([^)\n]*\))\{[^}\n]*\}", r"\1", text)
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: page.substitutions[m[1]], text)


def _section(match: re.Match[str], page: Page) -> str:
    """Drop an anchor, and remember the title that it stands before."""
    if match["title"]:
        page.note(match["label"], match["title"])
        return match[0].split("=\n", 1)[1].lstrip("\n")
    return ""


def _address(name: str, page: Page) -> str:
    """Return the web address of a page: a relative link would be dead on Colab."""
    return f"{page.repository}/{name}.{'ipynb' if name in page.notebooks else 'md'}"


def _role(name: str, text: str, page: Page) -> str:
    """Return the plain form of one role."""
    titled = TITLED.match(text)
    title, target = (titled["title"], titled["target"]) if titled else ("", text)
    if name in ("eq", "ref", "numref", "prf:ref"):
        return title if title and "%s" not in title else page.find(target)
    if name.startswith("cite"):
        return _citation(name, text, page)
    if name == "doc":
        return f"[{title or page.find(target)}]({_address(target, page)})"
    if name == "math":
        return f"${text}$"
    if name in ("term", "abbr", "download", "sub", "sup"):
        return title or text
    if name.startswith(("py:", "glue")) or name in CODE_ROLES:
        return f"`{title or (text.split('.')[-1] if text.startswith('~') else text)}`"
    raise ValueError(f"{page.name}: no plain form is known for the role {{{name}}}`{text}`")


def _citation(role: str, keys: str, page: Page) -> str:
    """Return `(Ho et al., 2020)`, or `Ho et al. (2020)` for the role that is part of a sentence."""
    found = []
    for key in (part.strip() for part in keys.split(",")):
        if key not in page.citations:
            raise ValueError(f"{page.name}: the bibliography has no entry {key!r}")
        page.cited.add(key)
        entry = page.citations[key]
        year = f" ({entry.year})" if role == "cite:t" else f", {entry.year}"
        text = entry.authors + year
        found.append(f"[{text}]({entry.url})" if entry.url else text)
    return ", ".join(found) if role == "cite:t" else f"({'; '.join(found)})"
