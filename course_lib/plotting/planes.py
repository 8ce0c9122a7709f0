"""Figures in the plane: samples, densities, trajectories and vector fields in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_lib.plotting.style import PALETTE, WIDTH, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["density", "scatter", "trajectories", "vector_field"]

LogProb = Callable[[Tensor], Tensor]
"""A log-density, (N, 2) -> (N,)."""
Field = Callable[[Tensor], Tensor]
"""A vector field, (N, 2) -> (N, 2)."""


@house_style()
def scatter(
    samples: Tensor | Mapping[str, Tensor],
    *,
    density: LogProb | Mapping[str, LogProb] | None = None,
    limit: float | None = None,
) -> Figure:
    """Sets of points side by side, on the same axes.

    Args:
        samples: points, shape (N, 2); or several sets by title.
        density: log-density to draw, shaded, behind every set; or one by title for each.
        limit: the axes run from -limit to limit; just enough for all points by default.

    Returns:
        The figure.

    Raises:
        ValueError: if points are not of shape (N, 2).
    """
    sets = samples if isinstance(samples, Mapping) else {"": samples}
    for title, points in sets.items():
        _check(points, 2, f"samples[{title!r}]", "(N, 2)")
    limit = _limit(torch.cat([points.cpu() for points in sets.values()]), limit)
    fig, panels = _panels(list(sets), limit)
    for ax, (title, points) in zip(panels, sets.items(), strict=True):
        _shade_behind(ax, title, density, limit)
        size = min(12.0, max(2.0, 4000 / len(points)))
        xy = points.detach().cpu()
        ax.scatter(xy[:, 0], xy[:, 1], s=size, color=PALETTE[0], alpha=0.7, linewidths=0)
    return fig


@house_style()
def density(log_probs: LogProb | Mapping[str, LogProb], *, limit: float) -> Figure:
    """Densities side by side, each shaded up to its own maximum.

    Args:
        log_probs: a log-density, (N, 2) -> (N,); or several by title.
        limit: the axes run from -limit to limit.

    Returns:
        The figure.
    """
    shown = log_probs if isinstance(log_probs, Mapping) else {"": log_probs}
    fig, panels = _panels(list(shown), limit)
    for ax, log_prob in zip(panels, shown.values(), strict=True):
        _shade(ax, log_prob, limit)
    return fig


@house_style()
def trajectories(
    trajectory: Tensor | Mapping[str, Tensor],
    *,
    density: LogProb | None = None,
    limit: float | None = None,
    ends: tuple[str, str] = ("noise", "sample"),
) -> Figure:
    """Paths of points, each from an open circle to a filled one.

    Args:
        trajectory: states along the way, shape (S+1, B, 2), such as ``sample(...,
            return_trajectory=True)`` gives; or several by title.
        density: log-density to draw, shaded, behind the paths.
        limit: the axes run from -limit to limit; just enough for all states by default.
        ends: names of the first and the last state, for the legend.

    Returns:
        The figure.

    Raises:
        ValueError: if a trajectory is not of shape (S+1, B, 2).
    """
    shown = trajectory if isinstance(trajectory, Mapping) else {"": trajectory}
    for title, states in shown.items():
        _check(states, 3, f"trajectory[{title!r}]", "(S+1, B, 2)")
    limit = _limit(torch.cat([states.cpu().flatten(0, 1) for states in shown.values()]), limit)
    fig, panels = _panels(list(shown), limit, below=0.5)
    for ax, states in zip(panels, shown.values(), strict=True):
        if density is not None:
            _shade(ax, density, limit)
        _draw_paths(ax, states.detach().cpu(), ends)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


@house_style()
def vector_field(
    fields: Field | Mapping[str, Field],
    *,
    limit: float,
    density: LogProb | Mapping[str, LogProb] | None = None,
    resolution: int = 17,
) -> Figure:
    """Arrows of vector fields side by side, each scaled to its own longest arrow.

    Args:
        fields: a field, (N, 2) -> (N, 2), such as ``lambda x: denoiser.score(x, t)``; or several
            by title.
        limit: the axes run from -limit to limit.
        density: log-density to draw, shaded, behind every field; or one by title for each.
        resolution: arrows along each axis.

    Returns:
        The figure.

    Raises:
        ValueError: if a field does not return one vector a point.
    """
    shown = fields if isinstance(fields, Mapping) else {"": fields}
    fig, panels = _panels(list(shown), limit)
    x = _mesh(0.93 * limit, resolution)
    for ax, (title, field) in zip(panels, shown.items(), strict=True):
        _shade_behind(ax, title, density, limit)
        with torch.no_grad():
            vectors = field(x).cpu()
        if vectors.shape != x.shape:
            raise ValueError(
                f"fields[{title!r}] must map shape {tuple(x.shape)} to the same shape; "
                f"got {tuple(vectors.shape)}"
            )
        ax.quiver(*x.T, *vectors.T, color=PALETTE[1], width=0.006, pivot="mid")
    return fig


def _check(x: Tensor, ndim: int, name: str, shape: str) -> None:
    if x.ndim != ndim or x.shape[-1] != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(x.shape)}")


def _limit(points: Tensor, limit: float | None) -> float:
    """The given limit, or the smallest that leaves a margin around all finite points."""
    if limit is not None:
        return limit
    return 1.05 * float(points.detach().abs().nan_to_num(0, 0, 0).max().clamp(min=1e-6))


def _panels(titles: list[str], limit: float, below: float = 0.15) -> tuple[Figure, list[Axes]]:
    """A row of square axes on the same limits, with inches of room for labels and legend."""
    from matplotlib.figure import Figure

    side = min(3.4, WIDTH / len(titles))
    height = side + below + 0.25 * any(titles)
    fig = Figure(figsize=(side * len(titles), height), layout="compressed")
    panels = list(fig.subplots(1, len(titles), sharex=True, sharey=True, squeeze=False)[0])
    for ax, title in zip(panels, titles, strict=True):
        ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.set_xlabel("first coordinate")
    panels[0].set_ylabel("second coordinate")
    return fig, panels


def _mesh(limit: float, resolution: int) -> Tensor:
    """Points of a square grid, shape (resolution^2, 2), the first coordinate varying fastest."""
    line = torch.linspace(-limit, limit, resolution)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def heights(log_prob: LogProb, limit: float, resolution: int) -> Tensor:
    """A density on a square grid, as parts of its maximum; shape (resolution, resolution).

    Rows follow the second coordinate, columns the first, both rising.

    Raises:
        ValueError: if the log-density does not return one number a point.
    """
    mesh = _mesh(limit, resolution)
    with torch.no_grad():
        values = log_prob(mesh).cpu().double()
    if values.shape != mesh.shape[:1]:
        raise ValueError(f"density must map (N, 2) to (N,); got shape {tuple(values.shape)}")
    return (values - values.max()).exp().reshape(resolution, resolution)


def _shade(ax: Axes, log_prob: LogProb, limit: float, resolution: int = 120) -> None:
    """Shade a density by tenths of its maximum; the bare page is where it is nearly zero."""
    from matplotlib.colors import to_rgba

    height = heights(log_prob, limit, resolution)
    levels = [0.02, *(i / 10 for i in range(1, 11))]
    shades = [to_rgba(PALETTE[5], 0.1 + 0.08 * i) for i in range(10)]
    line = torch.linspace(-limit, limit, resolution)
    ax.contourf(line, line, height, levels=levels, colors=shades, zorder=0)


def _shade_behind(
    ax: Axes, title: str, density: LogProb | Mapping[str, LogProb] | None, limit: float
) -> None:
    """Shade the one density of a figure, or the one with this title, if there is any."""
    log_prob = density[title] if isinstance(density, Mapping) else density
    if log_prob is not None:
        _shade(ax, log_prob, limit)


def _draw_paths(ax: Axes, states: Tensor, ends: tuple[str, str]) -> None:
    """Thin lines through the states, with both ends marked."""
    from matplotlib.collections import LineCollection

    ax.add_collection(
        LineCollection(list(states.transpose(0, 1)), colors=PALETTE[0], linewidths=0.8, alpha=0.65)
    )
    first, last = states[0], states[-1]
    ax.scatter(
        first[:, 0],
        first[:, 1],
        s=14,
        facecolors="none",
        edgecolors=PALETTE[0],
        label=ends[0],
        zorder=3,
    )
    ax.scatter(last[:, 0], last[:, 1], s=14, color=PALETTE[1], label=ends[1], zorder=3, lw=0)
