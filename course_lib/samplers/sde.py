"""Stochastic solvers: every step denoises a little and adds fresh noise."""

from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.samplers.grids import intervals
from course_lib.samplers.ode import Callback

__all__ = ["ancestral"]


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    variance: Literal["small", "large"] = "small",
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDPM's sampler (Ho et al., 2020, algorithm 2), on any path and any grid.

    Each step draws from q(x_s | x_t, x_0) with the predicted x_0. Its variance is the
    posterior's, beta-tilde ("small"), or the forward step's, beta ("large"); the two are right
    for data that is one point, and for data that is standard normal (section 3.2 of the paper).
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``variance`` is neither "small" nor "large".
    """
    if variance not in ("small", "large"):
        raise ValueError(f'variance must be "small" or "large"; got {variance!r}')
    path = denoiser.path
    for i, t, s, times in intervals(x, ts):
        alpha_t, sigma_t, alpha_s, sigma_s = (
            path.alpha(t),
            path.sigma(t),
            path.alpha(s),
            path.sigma(s),
        )
        x0 = denoiser.data(x, times, cond)
        ratio = alpha_t / alpha_s
        added = (sigma_t**2 - ratio**2 * sigma_s**2).clamp(min=0)  # beta_t for neighbours s, t
        var = added * sigma_s**2 / sigma_t**2 if variance == "small" else added
        x = ratio * sigma_s**2 / sigma_t**2 * x + alpha_s * added / sigma_t**2 * x0
        if sigma_s > 0:  # no noise after the last step
            x = x + var.sqrt() * torch.empty_like(x).normal_(generator=generator)
        if callback:
            callback(i, s, x)
    return x
