"""Put a figure into the page: with alternative text, for light and dark mode, without a network."""

from __future__ import annotations

import base64
import html
import re
import sys
from typing import TYPE_CHECKING

from course_lib.plotting.render import light_and_dark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_html", "show"]

# Where a page says that it is dark: the book and Colab on <html>, JupyterLab and VS Code on <body>.
_DARK = (
    ':is(html[data-theme="dark"],html[theme="dark"],'
    'body[data-jp-theme-light="false"],body.vscode-dark)'
)
# The class "dark-light" tells the book's theme to leave an image alone; its rule for outputs in
# dark mode (a light panel behind them) knows no such class and is undone here.
_CSS = f"""\
<style>
.course-figure{{margin:1rem auto;max-width:100%;text-align:center}}
.course-figure img{{max-width:100%;height:auto;background:none!important;padding:0!important}}
{_DARK} .course-figure .course-light{{display:none!important}}
{_DARK} .course-figure .course-dark{{display:inline!important}}
.course-figure figcaption{{margin:.5rem auto 0;max-width:40rem;text-align:center;color:inherit}}
html[data-theme="dark"] .text_html:has(.course-figure)\
{{background:none!important;color:inherit!important;padding:0!important}}
</style>
"""


def show(fig: Figure, *, alt: str, caption: str | None = None, width: int | None = None) -> None:
    """Display a figure in the notebook and in the built page, and close it.

    The figure is rendered for light and for dark pages; the page shows the one that fits. Outside
    a notebook only the words ``[figure] alt`` appear.

    Args:
        fig: the figure, drawn in :func:`course_lib.plotting.house_style`.
        alt: what a reader who cannot see the figure needs to know: the finding, in a sentence.
        caption: text below the figure; TeX between dollar signs becomes a formula.
        width: width on the page in pixels; 100 an inch by default.

    Raises:
        ValueError: if ``alt`` is empty.
    """
    publish(figure_html(fig, alt=alt, caption=caption, width=width), alt)
    close(fig)


def figure_html(
    fig: Figure, *, alt: str, caption: str | None = None, width: int | None = None
) -> str:
    """The HTML that :func:`show` displays: one <figure> that needs nothing from outside.

    Args:
        fig: the figure.
        alt: alternative text, not empty.
        caption: text below the figure.
        width: width on the page in pixels.

    Raises:
        ValueError: if ``alt`` is empty.
    """
    alt = checked_alt(alt)
    size = page_size(fig, width)
    images = zip(("light", "dark"), light_and_dark(fig), strict=True)
    return wrap(
        "".join(image_tag(as_text(image), alt, size, name) for name, image in images), caption
    )


def checked_alt(alt: str) -> str:
    """``alt`` as the value of an HTML attribute; refuse an empty one."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt must say in words what the figure shows; got {alt!r}")
    return html.escape(alt.strip())


def page_size(fig: Figure, width: int | None) -> tuple[int, int]:
    """Width and height on the page, in pixels."""
    inches = fig.get_size_inches()
    width = round(100 * inches[0]) if width is None else width
    return width, round(width * inches[1] / inches[0])


def as_text(png: bytes) -> str:
    """A PNG in base64."""
    return base64.b64encode(png).decode()


def image_tag(png: str, alt: str, size: tuple[int, int], name: str, more: str = "") -> str:
    """One <img> of the class "course-name".

    The dark one is hidden, from screen readers too, until the page is dark.
    """
    hidden = ' style="display:none"' if name == "dark" else ""
    return (
        f'<img class="course-{name} dark-light" src="data:image/png;base64,{png}" alt="{alt}" '
        f'width="{size[0]}" height="{size[1]}"{hidden}{more}>\n'
    )


def wrap(content: str, caption: str | None, attributes: str = 'class="course-figure"') -> str:
    """A <figure> with its style sheet and, where there is one, the caption."""
    if caption is not None:
        # The book's MathJax works only inside elements of this class, and not on dollar signs.
        text = re.sub(r"\$(.+?)\$", r"\\(\1\\)", html.escape(caption, quote=False))
        content += f'<figcaption class="mathjax_process">{text}</figcaption>\n'
    return f"{_CSS}<figure {attributes}>\n{content}</figure>\n"


class _Output:
    """What a notebook receives: HTML, and words for every place that shows none."""

    def __init__(self, markup: str, alt: str):
        self._markup, self._alt = markup, alt

    def _repr_html_(self) -> str:
        return self._markup

    def __repr__(self) -> str:
        return f"[figure] {self._alt.strip()}"


def publish(markup: str, alt: str) -> None:
    """Hand HTML to the notebook, with its alternative text as the plain version."""
    from IPython.display import display

    display(_Output(markup, alt))


def close(fig: Figure) -> None:
    """Let pyplot, if it is in use, forget the figure, so that it is not shown a second time."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)
