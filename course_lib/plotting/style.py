"""One house style for every figure of the course, readable on light and dark pages.

The curve colours are those of Okabe and Ito (2008), which colour-blind readers tell apart, with
blue lightened and the yellows darkened so that each has a contrast of at least 3:1 on white and on
the dark page. They never change between themes; only text, axes and grid do. Curves also differ in
line style, so that nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["LINE_STYLES", "MARKERS", "PALETTE", "WIDTH", "Theme", "house_style", "recolour"]

Theme = Literal["light", "dark"]

PALETTE = ("#1F7FC0", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#808080")
"""Blue, vermilion, green, purple, ochre, grey."""
LINE_STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)))
"""The n-th curve has the n-th colour and the n-th of these."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""The n-th set of points has the n-th of these."""
WIDTH = 6.4
"""Width of a figure in inches; the page shows an inch as 100 pixels."""

_INK = {"light": "#1f2328", "dark": "#e6e6e6"}
_GRID = {"light": "#d9dce1", "dark": "#3b4048"}
_PAGE = {"light": "#ffffff", "dark": "#121212"}


@contextmanager
def house_style(theme: Theme = "light") -> Iterator[None]:
    """Draw in the house style inside a ``with`` block; matplotlib's settings come back after it.

    Args:
        theme: the page that the figure is for. :func:`course_lib.plotting.show` makes both
            versions from a light one, so drawing code has no need to choose.

    Raises:
        ValueError: if ``theme`` is neither "light" nor "dark".
    """
    import matplotlib

    with matplotlib.rc_context(_settings(theme)):
        yield


def _settings(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's rcParams of the house style."""
    from cycler import cycler

    if theme not in get_args(Theme):
        raise ValueError(f"theme must be one of {', '.join(get_args(Theme))}; got {theme!r}")
    ink_names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    clear_names = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {
        **dict.fromkeys(ink_names, _INK[theme]),
        **dict.fromkeys(clear_names, "none"),
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=LINE_STYLES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "figure.figsize": (WIDTH, 3.6),
        "font.family": "DejaVu Sans",  # it comes with matplotlib: the same picture everywhere
        "font.size": 11,
        "grid.color": _GRID[theme],
        "image.cmap": "gray",
        "legend.edgecolor": "none",
        "legend.facecolor": _PAGE[theme],
        "lines.linewidth": 1.8,
    }


def recolour(fig: Figure, theme: Theme) -> None:
    """Turn text, axes, grid and page-coloured faces of a drawn figure to another theme, in place.

    Black becomes the ink of the page, and white faces become the page; every other colour, such
    as those of the palette and of images, stays. Ticks exist only once the figure is drawn, so
    save or draw it before.

    Args:
        fig: a figure in the house style, or in matplotlib's own.
        theme: the theme to turn to.
    """
    other: Theme = "light" if theme == "dark" else "dark"
    ink = {"#000000": _INK[theme], _INK[other]: _INK[theme], _GRID[other]: _GRID[theme]}
    face = ink | {_PAGE[other]: _PAGE[theme]}
    for artist in fig.findobj():
        if getattr(artist, "get_array", lambda: None)() is not None:
            continue  # its colours stand for values
        for attribute in ("color", "edgecolor", "markeredgecolor"):
            _swap(artist, attribute, ink)
        for attribute in ("facecolor", "markerfacecolor"):
            _swap(artist, attribute, face)


def _swap(artist: Artist, attribute: str, table: dict[str, str]) -> None:
    """Exchange those colours of one attribute that are in the table; keep their opacity."""
    from matplotlib.colors import to_hex, to_rgb, to_rgba_array

    get, put = (getattr(artist, f"{verb}_{attribute}", None) for verb in ("get", "set"))
    if get is None or put is None:
        return
    colours: np.ndarray = to_rgba_array(get())
    found = [to_hex(colour) if colour[3] > 0 else "" for colour in colours]
    if table.keys().isdisjoint(found):
        return
    for colour, name in zip(colours, found, strict=True):
        if name in table:
            colour[:3] = to_rgb(table[name])
    put(tuple(colours[0]) if len(colours) == 1 else colours)
