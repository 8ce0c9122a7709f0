"""Time grids: where a solver stops on its way from noise to data.

A grid is a falling tensor of shape (steps + 1,), float64, from ``t_max`` to the end.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.paths import Path, check_time

__all__ = [
    "Knot",
    "cosine_grid",
    "karras_grid",
    "knots",
    "lambda_grid",
    "uniform_grid",
    "walk",
]


def uniform_grid(path: Path, steps: int, *, t_max: float = 1.0, t_min: float = 0.0) -> Tensor:
    """Steps of equal length in t; moved to the path's own steps where it has some.

    Raises:
        ValueError: if ``steps`` < 1 or exceeds the steps of a discrete path.
    """
    _check_steps(steps)
    return _on_path(path, torch.linspace(t_max, t_min, steps + 1, dtype=torch.float64))


def cosine_grid(path: Path, steps: int, *, t_max: float = 1.0, t_min: float = 0.0) -> Tensor:
    """Steps that shrink towards both ends: t = (1 - cos(pi u)) / 2 for u uniform.

    Raises:
        ValueError: if ``steps`` < 1 or exceeds the steps of a discrete path.
    """
    _check_steps(steps)
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return _on_path(path, t_min + (t_max - t_min) * (1 - torch.cos(math.pi * u)) / 2)


def lambda_grid(path: Path, steps: int, *, t_max: float = 1.0, t_min: float = 1e-3) -> Tensor:
    """Steps of equal length in lambda = log(alpha / sigma) down to ``t_min``, then one to t = 0.

    Lu et al., 2022 ("DPM-Solver").

    Raises:
        ValueError: if ``steps`` < 2, or lambda is infinite at ``t_max`` or ``t_min``.
    """
    start, stop = _lambdas(path, steps, t_max, t_min)
    return _then_zero(path, torch.linspace(start, stop, steps, dtype=torch.float64))


def karras_grid(
    path: Path, steps: int, *, rho: float = 7.0, t_max: float = 1.0, t_min: float = 1e-3
) -> Tensor:
    """Karras et al., 2022 ("EDM"), eq. 5, for the noise-to-signal ratio sigma / alpha; then t = 0.

    Raises:
        ValueError: if ``steps`` < 2, or sigma / alpha is 0 or infinite at ``t_max`` or ``t_min``.
    """
    start, stop = _lambdas(path, steps, t_max, t_min)
    ends = math.exp(-start / rho), math.exp(-stop / rho)
    ratio = torch.linspace(*ends, steps, dtype=torch.float64) ** rho
    return _then_zero(path, -torch.log(ratio))


def check_grid(ts: Tensor) -> None:
    """Refuse what is no grid.

    Raises:
        ValueError: if ``ts`` is not a falling 1-D grid of at least two times in [0, 1].
    """
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(
            f"ts must be a 1-D grid of at least two times; got shape {tuple(ts.shape)}"
        )
    times = ts.tolist()  # a few numbers: Python compares them sooner than torch does
    falls = all(t > s for t, s in pairwise(times))
    if not (falls and times[0] <= 1 and times[-1] >= 0):
        check_time(ts)
        raise ValueError(f"ts must fall from noise (t = 1) to data (t = 0); got {times}")


class Knot(NamedTuple):
    """A time of a grid and the path there; with it a solver's step reads as on paper."""

    time: Tensor
    """The time, a scalar tensor like x."""
    times: Tensor
    """The time for each sample, shape (B,)."""
    exact: Any
    """The time, a float; a scalar tensor if the grid asks for its gradient. So are the others."""
    alpha: Any
    """alpha."""
    sigma: Any
    """sigma."""
    lam: Any
    """lambda = log(alpha / sigma); infinite where one of them is 0."""


def knots(path: Path, x: Tensor, ts: Tensor) -> list[Knot]:
    """The path at every time of a grid, in float64 and before the first step.

    Plain numbers cost a step almost nothing. Where ``ts`` asks for its gradient they are tensors,
    so a grid can be learned.
    """
    time, times = ts.to(x).unbind(), ts.to(x)[:, None].expand(-1, len(x)).unbind()
    if ts.requires_grad:  # one time each: lambda's slope, infinite at the ends, stays out of it
        functions = (path.alpha, path.sigma, path.log_snr_half)
        values = [list(ts.double()), *([f(t) for t in ts.double()] for f in functions)]
        return [Knot(*row) for row in zip(time, times, *values, strict=True)]
    numbers = _kept_numbers if path.fixed else _numbers
    exact = tuple(ts.tolist())
    for t, shared in zip(exact, times, strict=True):
        shared.shared = t  # type: ignore[attr-defined]  # see course_lib.paths.shared_time
    return [Knot(*row) for row in zip(time, times, exact, *numbers(path, exact), strict=True)]


def _numbers(path: Path, exact: tuple[float, ...]) -> list[list[float]]:
    """alpha, sigma and lambda at the times of a grid."""
    t = torch.tensor(exact, dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    return [v.tolist() for v in (alpha, sigma, torch.log(alpha) - torch.log(sigma))]


_kept_numbers = lru_cache(maxsize=64)(_numbers)


def walk(path: Path, x: Tensor, ts: Tensor) -> Iterator[tuple[int, Knot, Knot]]:
    """Walk a grid: (i, t, s), step i from the knot t down to the knot s.

    Raises:
        ValueError: if ``ts`` is not a falling 1-D grid of at least two times in [0, 1].
    """
    check_grid(ts)
    for i, (t, s) in enumerate(pairwise(knots(path, x, ts))):
        yield i, t, s


def _check_steps(steps: int, least: int = 1) -> None:
    if steps < least:
        raise ValueError(f"steps must be at least {least}; got {steps}")


def _on_path(path: Path, ts: Tensor) -> Tensor:
    snapped = path.snap(ts)
    if not bool((snapped.diff() < 0).all()):
        raise ValueError(
            f"{len(ts) - 1} steps between t = {ts[0]:.4g} and {ts[-1]:.4g} do not fit on {path}: "
            f"some fall on the same time; take fewer steps"
        )
    return snapped


def _lambdas(path: Path, steps: int, t_max: float, t_min: float) -> tuple[float, float]:
    _check_steps(steps, least=2)
    ends = path.log_snr_half(torch.tensor([t_max, t_min], dtype=torch.float64))
    if not bool(torch.isfinite(ends).all()):
        raise ValueError(
            f"lambda = log(alpha / sigma) must be finite at both ends; on {path} it is "
            f"{ends[0]:.4g} at t_max = {t_max} and {ends[1]:.4g} at t_min = {t_min}: "
            f"move them inwards, say t_max=0.999, t_min=0.001"
        )
    return ends[0].item(), ends[1].item()


def _then_zero(path: Path, lam: Tensor) -> Tensor:
    return _on_path(path, torch.cat([path.t_of_lambda(lam), lam.new_zeros(1)]))
