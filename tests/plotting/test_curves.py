"""Curves and bars show the numbers that they were given."""

import numpy as np
import pytest
import torch

from course_lib.plotting import bars, line_panels, lines, loss_curve
from course_lib.plotting.style import LINE_STYLES, MARKERS, PALETTE


def drawn(fig):
    """The curves of a figure, apart from the first two curves of a loss curve by label."""
    return {line.get_label(): line for line in fig.axes[0].lines}


def test_lines_draws_curves_and_levels():
    x = torch.linspace(0, 1, 5, requires_grad=True)
    fig = lines(x, {"square": x**2, "floor": 0.5}, xlabel="time", ylabel="loss", yscale="log")
    curves = drawn(fig)
    assert curves["square"].get_ydata() == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16, 1])
    assert curves["floor"].get_ydata() == [0.5, 0.5]
    ax = fig.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time", "loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["square", "floor"]


def test_one_curve_needs_no_legend():
    assert lines([0, 1], {"a": [0, 1]}, xlabel="x", ylabel="y").axes[0].get_legend() is None


def test_curves_differ_in_colour_style_and_marker():
    ys = {str(k): [1.0, k + 1.0] for k in range(2 * len(PALETTE))}
    fig = lines([1, 2], ys, xlabel="x", ylabel="y", markers=True)
    curves = list(drawn(fig).values())
    assert [line.get_color() for line in curves] == [*PALETTE, *PALETTE]
    assert [line.get_marker() for line in curves[: len(MARKERS)]] == list(MARKERS)
    assert len({str(line._unscaled_dash_pattern) for line in curves}) == len(LINE_STYLES)
    for key in (lambda c: str(c._unscaled_dash_pattern), lambda c: c.get_marker()):
        assert len({(c.get_color(), key(c)) for c in curves}) == len(curves)


def test_many_curves_have_their_legend_beside_the_axes():
    fig = lines([1, 2], {str(k): [1.0, k] for k in range(9)}, xlabel="x", ylabel="y")
    assert fig.axes[0].get_legend() is None
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == [str(k) for k in range(9)]


def test_measured_points_on_a_log_axis_are_named():
    fig = lines([1, 5, 20], {"a": [3, 2, 1]}, xlabel="n", ylabel="y", xscale="log", markers=True)
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "5", "20"]
    assert len(ax.get_xticks(minor=True)) == 0


def test_lines_of_another_length():
    with pytest.raises(ValueError, match=r"ys\['a'\] must be a number or have the shape of x"):
        lines([0, 1, 2], {"a": [0, 1]}, xlabel="x", ylabel="y")


def test_line_panels_share_axes_and_legend():
    x = torch.linspace(-2, 2, 5)
    panels = {name: {"f": k * x, "inverse": x / k} for k, name in ((2, "two"), (4, "four"))}
    fig = line_panels(x, panels, limit=3.0, columns=3)
    assert [ax.get_title() for ax in fig.axes] == ["two", "four", ""]
    assert [ax.axison for ax in fig.axes] == [True, True, False]
    assert fig.axes[1].lines[1].get_ydata() == pytest.approx((x / 4).tolist())
    assert fig.axes[0].get_xlim() == fig.axes[1].get_ylim() == (-3, 3)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["f", "inverse"]


def test_line_panels_with_other_curves():
    with pytest.raises(ValueError, match="panels must have the same curves everywhere"):
        line_panels([0, 1], {"one": {"a": [0, 1]}, "two": {"b": [0, 1]}}, limit=1.0)


def test_loss_curve_is_a_moving_average():
    losses = torch.tensor([8.0, 4.0, 2.0, 2.0, 1.0])
    raw, smooth = loss_curve(losses, smooth=2).axes[0].lines
    assert raw.get_ydata().tolist() == losses.tolist()
    assert smooth.get_ydata() == pytest.approx([8, 6, 3, 2, 1.5])
    assert list(smooth.get_xdata()) == [1, 2, 3, 4, 5]


def test_loss_curve_defaults():
    fig = loss_curve(np.arange(1.0, 201.0).tolist(), ylabel="noise loss")
    ax = fig.axes[0]
    assert ax.lines[1].get_ydata()[-1] == pytest.approx((197 + 200) / 2)  # a fiftieth: 4 steps
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "noise loss", "log")
    assert ax.get_legend() is None


def test_loss_curves_of_several_runs():
    fig = loss_curve({"U-Net": [2.0, 1.0], "DiT": [3.0, 1.0]})
    texts = fig.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["U-Net", "DiT"]


@pytest.mark.parametrize(("losses", "smooth"), [([], None), ([1.0], 0)])
def test_loss_curve_errors(losses, smooth):
    with pytest.raises(ValueError, match="losses and smooth must not be empty or zero"):
        loss_curve(losses, smooth=smooth)


def test_bars_are_labelled_with_their_numbers():
    ax = bars({"a": 0.12345, "b": 50}, ylabel="seconds").axes[0]
    assert [patch.get_height() for patch in ax.patches] == [0.12345, 50]
    assert [text.get_text() for text in ax.texts] == ["0.123", "50"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
