"""Exponential integrators: solvers that treat the linear part of the ODE exactly.

Between t and s the probability-flow ODE, in the variable lambda = log(alpha / sigma), is
``x_s = sigma_s/sigma_t x_t + (alpha_s - alpha_t sigma_s/sigma_t) D`` for a constant data
prediction D (Lu et al., 2022, "DPM-Solver++"). Written so, nothing is infinite at
sigma_s = 0, where the step returns D, nor at alpha_t = 0.
"""

from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.samplers.grids import intervals
from course_lib.samplers.ode import Callback

__all__ = ["ddim", "dpm_solver_pp_2m"]


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    eta: float = 0.0,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al., 2021, eq. 12 and 16); with eta = 0 it is DPM-Solver-1, order 1.

    eta scales the fresh noise: 0 gives the ODE, 1 the standard deviation of DDPM's posterior.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``eta`` lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1] (0 is DDIM, 1 is DDPM); got {eta}")
    path = denoiser.path
    for i, t, s, times in intervals(x, ts):
        alpha_t, sigma_t, alpha_s, sigma_s = (
            path.alpha(t),
            path.sigma(t),
            path.alpha(s),
            path.sigma(s),
        )
        x0 = denoiser.data(x, times, cond)
        eps = (x - alpha_t * x0) / sigma_t
        # sigma_{t|s}^2, the noise that the forward path adds between s and t, is beta_t in DDPM.
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        std = eta * (sigma_s / sigma_t) * added.clamp(min=0).sqrt()
        x = alpha_s * x0 + (sigma_s**2 - std**2).sqrt() * eps
        if eta > 0:
            x = x + std * torch.empty_like(x).normal_(generator=generator)
        if callback:
            callback(i, s, x)
    return x


def dpm_solver_pp_2m(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): order 2, one evaluation a step (Lu et al., 2022, "DPM-Solver++").

    The data prediction is extrapolated in lambda from the last two steps. The first step, and a
    last step to sigma = 0 (lambda infinite), take it as it is. Arguments, result and errors as
    for :func:`course_lib.samplers.euler`.
    """
    path = denoiser.path
    previous: Tensor | None = None
    h_previous = torch.tensor(torch.inf)
    for i, t, s, times in intervals(x, ts):
        h = path.log_snr_half(s) - path.log_snr_half(t)
        x0 = direction = denoiser.data(x, times, cond)
        if previous is not None and torch.isfinite(h):
            direction = x0 + h / (2 * h_previous) * (x0 - previous)  # 1/(2r), r = h_previous / h
        shrink = path.sigma(s) / path.sigma(t)
        x = shrink * x + (path.alpha(s) - path.alpha(t) * shrink) * direction
        previous, h_previous = x0, h
        if callback:
            callback(i, s, x)
    return x
