"""Solvers of the probability-flow ODE ``dx/dt = velocity(x, t)``, straight from the textbook."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.samplers.grids import intervals

__all__ = ["Callback", "euler", "heun"]

Callback = Callable[[int, Tensor, Tensor], None]
"""``callback(i, s, x)``: step i has arrived at time s (a scalar tensor) with samples x."""


def euler(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method: order 1, one evaluation a step.

    Args:
        denoiser: any Denoiser.
        x: samples at time ts[0], shape (B, ...).
        ts: falling times in [0, 1], shape (steps + 1,).
        cond: passed to the denoiser.
        generator: not used; every solver has the same signature.
        callback: called after each step as ``callback(i, s, x)``.

    Returns:
        Samples at time ts[-1], shape (B, ...).

    Raises:
        ValueError: if the grid does not fall or leaves [0, 1], or shapes do not fit.
    """
    for i, t, s, times in intervals(x, ts):
        x = x + (s - t) * denoiser.velocity(x, times, cond)
        if callback:
            callback(i, s, x)
    return x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method: order 2, two evaluations a step (Karras et al., 2022, algorithm 1).

    Where the step ends at sigma = 0 the velocity may be singular, so that step is Euler's; one
    step of local error O(h^2) leaves the order at 2. Arguments as for :func:`euler`.
    """
    for i, t, s, times in intervals(x, ts):
        velocity = denoiser.velocity(x, times, cond)
        proposal = x + (s - t) * velocity
        if denoiser.path.sigma(s) > 0:
            velocity = (velocity + denoiser.velocity(proposal, s.expand(len(x)), cond)) / 2
        x = x + (s - t) * velocity
        if callback:
            callback(i, s, x)
    return x
