"""Curves and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_lib.plotting.style import LINE_STYLES, MARKERS, PALETTE, WIDTH, house_style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "line_panels", "lines", "loss_curve"]

Values = Tensor | Sequence[float]
"""A one-dimensional series."""


@house_style()
def lines(
    x: Values,
    ys: Mapping[str, Values | float],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
    markers: bool = False,
) -> Figure:
    """Curves over one x axis, told apart by colour and by line style (and by marker).

    The legend stands beside the axes where there are more curves than colours.

    Args:
        x: shape (N,).
        ys: for each label the values, shape (N,), or one number for a horizontal line.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        xscale: scale of the x axis, "linear" or "log".
        yscale: scale of the y axis, "linear" or "log".
        markers: mark each value, and on a log axis write each x; for a few measured points.

    Returns:
        The figure.

    Raises:
        ValueError: if a curve has another length than ``x``.
    """
    fig, ax = _axes(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    grid = _array(x)
    for i, (label, y) in enumerate(ys.items()):
        values = _array(y)
        if values.shape not in ((), grid.shape):
            raise ValueError(
                f"ys[{label!r}] must be a number or have the shape of x, {grid.shape}; "
                f"got {values.shape}"
            )
        if values.ndim == 0:
            ax.axhline(float(values), label=label, **_curve_style(i))
        else:
            marker = MARKERS[(i + i // len(MARKERS)) % len(MARKERS)] if markers else "none"
            ax.plot(grid, values, label=label, marker=marker, markersize=5, **_curve_style(i))
    if markers and xscale == "log":
        ax.set_xticks(grid, [f"{value:g}" for value in grid])
        ax.set_xticks([], minor=True)
    if len(ys) > 1:
        _legend(fig, ax, beside=len(ys) > len(PALETTE))
    return fig


@house_style()
def line_panels(
    x: Values,
    panels: Mapping[str, Mapping[str, Values]],
    *,
    limit: float,
    columns: int = 3,
) -> Figure:
    """Small square figures in rows, each with the same few curves over x; one legend for all.

    Args:
        x: shape (N,).
        panels: for each title the curves by label, shape (N,); the same labels everywhere.
        limit: both axes run from -limit to limit.
        columns: figures in a row.

    Returns:
        The figure.

    Raises:
        ValueError: if the labels differ from one figure to another.
    """
    from matplotlib.figure import Figure

    labels = {tuple(curves) for curves in panels.values()}
    if len(labels) != 1:
        raise ValueError(f"panels must have the same curves everywhere; got {sorted(labels)}")
    rows, side = -(-len(panels) // columns), WIDTH / columns
    fig = Figure(figsize=(WIDTH, (side + 0.15) * rows + 0.3))
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, curves) in zip(axes, panels.items(), strict=False):
        ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.grid(visible=True)
        for i, (label, y) in enumerate(curves.items()):
            ax.plot(_array(x), _array(y), label=label, **_curve_style(i))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return fig


@house_style()
def loss_curve(
    losses: Values | Mapping[str, Values], *, smooth: int | None = None, ylabel: str = "loss"
) -> Figure:
    """Training loss by step: the raw values faint, their moving average on top; log scale.

    Args:
        losses: one loss a step, shape (S,); or several runs by label.
        smooth: steps in the moving average; a fiftieth of the run by default.
        ylabel: name of the loss.

    Returns:
        The figure.

    Raises:
        ValueError: if a run is empty, or ``smooth`` is not positive.
    """
    runs = losses if isinstance(losses, Mapping) else {"": losses}
    fig, ax = _axes(xlabel="step", ylabel=ylabel, yscale="log")
    for i, (label, values) in enumerate(runs.items()):
        raw = _array(values)
        window = max(1, len(raw) // 50) if smooth is None else smooth
        if len(raw) == 0 or window < 1:
            raise ValueError(
                f"losses and smooth must not be empty or zero; got {len(raw)} losses "
                f"and smooth = {window}"
            )
        steps = range(1, len(raw) + 1)
        ax.plot(steps, raw, color=PALETTE[i % len(PALETTE)], alpha=0.25, linewidth=0.8, ls="-")
        ax.plot(steps, _moving_average(raw, window), **_curve_style(i), label=label)
    if len(runs) > 1:
        ax.legend()
    return fig


@house_style()
def bars(values: Mapping[str, float], *, ylabel: str, digits: int = 3) -> Figure:
    """One bar a label, with its number written above.

    Args:
        values: height by label.
        ylabel: what the height is, with its unit.
        digits: significant digits of the numbers.

    Returns:
        The figure.
    """
    fig, ax = _axes(ylabel=ylabel)
    drawn = ax.bar(list(values), list(values.values()), color=PALETTE[0], width=0.6)
    ax.bar_label(drawn, labels=[f"{v:.{digits}g}" for v in values.values()], padding=2)
    ax.grid(visible=False, axis="x")
    return fig


def _axes(**labels: Any) -> tuple[Figure, Axes]:
    """One pair of axes with a grid and the given labels and scales."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, 3.4))
    ax = fig.add_subplot(**labels)
    ax.grid(visible=True)
    return fig, ax


def _legend(fig: Figure, ax: Axes, *, beside: bool) -> None:
    """The names of the curves, in the axes or beside them."""
    if beside:
        fig.legend(loc="outside right upper", fontsize=9)
    else:
        ax.legend()


def _curve_style(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th curve; after the last colour, new pairs of the two."""
    style = (i + i // len(PALETTE)) % len(LINE_STYLES)
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": LINE_STYLES[style]}


def _array(values: Values | float) -> np.ndarray:
    """Numbers as a float64 array."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values, of fewer at the start; same length."""
    import numpy as np

    sums = np.cumsum(np.insert(values, 0, 0.0))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)
