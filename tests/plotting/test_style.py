"""The house style: contrast, themes, and colours that follow the page."""

import matplotlib
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from course_lib.plotting import PALETTE, house_style
from course_lib.plotting.style import LINE_STYLES, MARKERS, recolour

PAGES = ("#ffffff", "#121212", "#14181e")
LIGHT_INK, DARK_INK = "#1f2328", "#e6e6e6"


def luminance(colour):
    """Relative luminance of WCAG 2."""
    channels = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)
    ]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def figure():
    with house_style():
        fig = Figure()
        ax = fig.add_subplot(title="title", xlabel="x", ylabel="y")
        ax.plot([0, 1], [0, 1], label="curve")
        ax.plot([0, 1], [1, 0], "o", color="k", markerfacecolor="white", label="hollow")
        ax.grid(visible=True)
        ax.legend()
        fig.draw_without_rendering()
    return fig


def text_colours(fig):
    texts = fig.findobj(matplotlib.text.Text)
    return {to_hex(text.get_color()) for text in texts if text.get_text()}


def test_contrast_formula():
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("page", PAGES)
def test_palette_is_readable_on_every_page(page):
    assert min(contrast(colour, page) for colour in PALETTE) >= 3


def test_ink_is_readable():
    assert contrast(LIGHT_INK, "#ffffff") > 7
    assert min(contrast(DARK_INK, page) for page in PAGES[1:]) > 7


def test_curves_differ_by_more_than_colour():
    assert len(set(PALETTE)) == len(set(LINE_STYLES)) == len(set(MARKERS)) == 6
    styles = [line.get_linestyle() for line in figure().axes[0].lines]
    assert styles[0] != styles[1]


def test_house_style_leaves_the_settings_as_they_were():
    before = dict(matplotlib.rcParams)
    with house_style("dark"):
        assert matplotlib.rcParams["text.color"] == DARK_INK
    assert dict(matplotlib.rcParams) == before


def test_unknown_theme():
    with pytest.raises(ValueError, match="theme must be one of light, dark; got 'sepia'"):
        house_style("sepia").__enter__()


def test_recolour_turns_the_ink_and_leaves_the_data():
    fig = figure()
    assert text_colours(fig) == {LIGHT_INK}
    recolour(fig, "dark")
    assert text_colours(fig) == {DARK_INK}
    ax = fig.axes[0]
    assert to_hex(ax.spines["left"].get_edgecolor()) == DARK_INK
    assert to_hex(ax.xaxis.get_ticklines()[0].get_color()) == DARK_INK
    assert contrast(ax.xaxis.get_gridlines()[0].get_color(), "#121212") < 3
    assert to_hex(ax.lines[0].get_color()) == PALETTE[0].lower()
    assert to_hex(ax.lines[1].get_color()) == DARK_INK  # black would vanish
    assert to_hex(ax.lines[1].get_markerfacecolor()) == "#121212"
    assert to_hex(ax.get_legend().get_frame().get_facecolor()) == "#121212"


def test_recolour_there_and_back():
    fig = figure()
    recolour(fig, "dark")
    recolour(fig, "light")
    assert text_colours(fig) == {LIGHT_INK}
    assert to_hex(fig.axes[0].lines[1].get_markerfacecolor()) == "#ffffff"


def test_recolour_keeps_opacity_and_values():
    fig = figure()
    ax = fig.axes[0]
    hollow = ax.scatter([0, 1], [0, 1], facecolors="none", edgecolors=["k", PALETTE[1]])
    span = ax.axvspan(0, 0.5, facecolor=(0, 0, 0, 0.25))
    values = ax.scatter([0, 1], [0, 1], c=[0.0, 1.0], cmap="gray")
    fig.draw_without_rendering()
    shades = values.get_facecolor().copy()
    recolour(fig, "dark")
    assert [to_hex(c) for c in hollow.get_edgecolor()] == [DARK_INK, PALETTE[1].lower()]
    assert len(hollow.get_facecolor()) == 0
    assert span.get_facecolor() == to_rgba(DARK_INK, 0.25)
    assert (values.get_facecolor() == shades).all()


def test_recolour_three_dimensions():
    with house_style():
        fig = Figure()
        ax = fig.add_subplot(projection="3d", title="surface")
        ax.scatter(*torch.eye(3).numpy())
        fig.draw_without_rendering()
    recolour(fig, "dark")
    assert text_colours(fig) == {DARK_INK}
