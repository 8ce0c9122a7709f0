"""Exponential integrators of one step: solvers that treat the linear part of the ODE exactly.

Between t and s the probability-flow ODE, in the variable lambda = log(alpha / sigma), is
``x_s = alpha_s/alpha_t x_t - sigma_s (e^h - 1) eps`` for a constant noise prediction eps, with
h = lambda_s - lambda_t (Lu et al., 2022, "DPM-Solver", eq. 3.7); that is DDIM. Better solvers
follow the change of eps within the step. Where h is infinite (sigma_s = 0, or alpha_t = 0) there
is no such change to follow, and the step is DDIM's in its finite form.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.paths import Face, Path, combine
from course_lib.samplers.grids import Knot, check_grid, knots, walk
from course_lib.samplers.ode import Callback

__all__ = ["ddim", "dpm_solver_2", "dpm_solver_3"]


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
    for i, t, s in walk(denoiser.path, x, ts):
        a, b, prediction = own_prediction(denoiser, x, t, cond, "data")
        # sigma_{t|s}^2, the noise that the forward path adds between s and t, is beta_t in DDPM.
        added = max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0)
        std = eta * s.sigma / t.sigma * added**0.5 if eta > 0 else 0.0
        # alpha_s x0 + sqrt(sigma_s^2 - std^2) eps with eps = (x - alpha_t x0) / sigma_t
        shrink = (s.sigma**2 - std**2) ** 0.5 / t.sigma
        gain = s.alpha - t.alpha * shrink
        x = combine(shrink + gain * a, gain * b, x, prediction)
        if eta > 0:
            x = x + std * torch.empty_like(x).normal_(generator=generator)
        if callback:
            callback(i, s.time, x)
    return x


def dpm_solver_2(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    r: float = 0.5,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver-2: order 2, two evaluations a step (Lu et al., 2022, algorithm 1).

    ``r`` in (0, 1] is where the step looks a second time, as a part of h; 1/2 is the midpoint.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``r`` lies outside (0, 1].
    """
    if not 0 < r <= 1:
        raise ValueError(f"r must lie in (0, 1], a part of the step; got {r}")
    between = _inside(denoiser.path, x, ts, r)
    for i, t, s in walk(denoiser.path, x, ts):
        if s.lam - t.lam < math.inf:
            eps = denoiser.noise(x, t.times, cond)
            u = _advance(x, t, between[i], eps)
            eps_1 = denoiser.noise(u, between[i].times, cond)
            eps = (1 - 1 / (2 * r)) * eps + 1 / (2 * r) * eps_1
            x = _advance(x, t, s, eps)
        else:
            x = ddim(denoiser, x, ts[i : i + 2], cond=cond)
        if callback:
            callback(i, s.time, x)
    return x


def dpm_solver_3(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver-3: order 3, three evaluations a step (Lu et al., 2022, algorithm 2).

    Arguments, result and errors as for :func:`course_lib.samplers.euler`.
    """
    first, second = (_inside(denoiser.path, x, ts, r) for r in (1 / 3, 2 / 3))
    for i, t, s in walk(denoiser.path, x, ts):
        h = s.lam - t.lam
        if h < math.inf:
            eps = denoiser.noise(x, t.times, cond)
            u = _advance(x, t, first[i], eps)
            slope = (denoiser.noise(u, first[i].times, cond) - eps) / (h / 3)
            u = _advance(x, t, second[i], eps, slope)
            slope = (denoiser.noise(u, second[i].times, cond) - eps) / (2 * h / 3)
            x = _advance(x, t, s, eps, slope)
        else:
            x = ddim(denoiser, x, ts[i : i + 2], cond=cond)
        if callback:
            callback(i, s.time, x)
    return x


def own_prediction(
    denoiser: Denoiser, x: Tensor, t: Knot, cond: Any, face: Face
) -> tuple[Any, Any, Tensor]:
    """The denoiser's own prediction, and the numbers with ``face = a x + b prediction``.

    A step is linear in x and the prediction. To add up the numbers first, and the images once,
    costs less than to make of every prediction another.
    """
    own = denoiser.predicts
    a, b = (0.0, 1.0) if own == face else denoiser.path.at("coefficients", t.times, x, own, face)
    return a, b, getattr(denoiser, own)(x, t.times, cond)


def _inside(path: Path, x: Tensor, ts: Tensor, r: float) -> list[Knot]:
    """The knots at the part r of every step, counted in lambda."""
    check_grid(ts)
    lam = path.log_snr_half(ts.double())
    h = lam.diff()
    return knots(path, x, path.t_of_lambda(torch.where(h.isfinite(), lam[:-1] + r * h, 0.0)))


def _advance(x: Tensor, t: Knot, s: Knot, eps: Tensor, slope: Tensor | None = None) -> Tensor:
    """The exact solution from t to s where the noise prediction is eps + (lambda - lambda_t) slope.

    alpha_s/alpha_t x - sigma_s (e^h - 1) eps - sigma_s (e^h - 1 - h) slope, in which
    e^h = alpha_s sigma_t / (alpha_t sigma_s).
    """
    ratio = s.alpha / t.alpha
    growth = ratio * t.sigma - s.sigma  # sigma_s (e^h - 1)
    x = combine(ratio, -growth, x, eps)
    return x if slope is None else x - (growth - s.sigma * (s.lam - t.lam)) * slope
