"""Stochastic solvers: every step denoises a little and adds fresh noise.

The reverse-time equation has a free choice: with any noise level eta >= 0,
``dx = [velocity - eta^2/2 g^2 score] dt + eta g dw`` has the marginals p_t. Since
velocity = f x - g^2/2 score, eta = 0 is the probability-flow ODE and eta = 1 the reverse SDE of
Anderson (Song et al., 2021, eq. 6 and 13; Zhang & Chen, 2023, eq. 5 and proposition 1).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.samplers.dpm import ddim
from course_lib.samplers.grids import walk
from course_lib.samplers.ode import Callback

__all__ = ["ancestral", "euler_maruyama", "predictor_corrector", "sde_dpm_solver_pp_2m"]


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
    for i, t, s in walk(denoiser.path, x, ts):
        x0 = denoiser.data(x, t.times, cond)
        ratio = t.alpha / s.alpha
        added = max(t.sigma**2 - ratio**2 * s.sigma**2, 0)  # beta_t for neighbours s, t
        var = added * s.sigma**2 / t.sigma**2 if variance == "small" else added
        x = ratio * s.sigma**2 / t.sigma**2 * x + s.alpha * added / t.sigma**2 * x0
        if s.sigma > 0:  # no noise after the last step
            x = x + var**0.5 * torch.empty_like(x).normal_(generator=generator)
        if callback:
            callback(i, s.time, x)
    return x


def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    eta: float = 1.0,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler-Maruyama for ``dx = [velocity - eta^2/2 g^2 score] dt + eta g dw``, backwards in time.

    The noise level ``eta`` is at least 0: 1 is the reverse SDE, 0 is :func:`euler`. Steps from
    alpha = 0, where g is infinite, and to sigma = 0, where no noise may be left, are DDIM's. On a
    path like Linear g is large near alpha = 0: there the first steps err by the order of their
    own length over 1 - t, and only the steps after them make up for it.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``eta`` is negative.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0 (0 is the ODE, 1 the reverse SDE); got {eta}")
    path = denoiser.path
    for i, t, s in walk(path, x, ts):
        if t.alpha == 0 or s.sigma == 0:
            x = ddim(denoiser, x, ts[i : i + 2], cond=cond)
        else:
            h, (_, g2) = s.time - t.time, path.drift_diffusion(t.time)
            x0 = denoiser.data(x, t.times, cond)
            score = path.convert(x0, x, t.times, "data", "score")
            drift = path.convert(x0, x, t.times, "data", "velocity") - eta**2 / 2 * g2 * score
            noise = torch.empty_like(x).normal_(generator=generator)
            x = x + h * drift + eta * torch.sqrt(g2 * -h) * noise
        if callback:
            callback(i, s.time, x)
    return x


def sde_dpm_solver_pp_2m(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, "DPM-Solver++", section 5): the reverse SDE, eta = 1.

    :func:`ancestral` with the data prediction extrapolated as in :func:`dpm_solver_pp_2m`.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`.
    """
    previous, h_previous = None, math.inf
    for i, t, s in walk(denoiser.path, x, ts):
        h = s.lam - t.lam
        x0 = direction = denoiser.data(x, t.times, cond)
        if previous is not None and h < math.inf:
            direction = x0 + h / (2 * h_previous) * (x0 - previous)
        decay = t.alpha * s.sigma / (s.alpha * t.sigma)  # e^{-h}
        x = s.sigma / t.sigma * decay * x + s.alpha * (1 - decay**2) * direction
        if s.sigma > 0:
            noise = torch.empty_like(x).normal_(generator=generator)
            x = x + s.sigma * (1 - decay**2) ** 0.5 * noise
        previous, h_previous = x0, h
        if callback:
            callback(i, s.time, x)
    return x


def predictor_corrector(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    predictor: Literal["ancestral", "ddim", "euler_maruyama"] = "ancestral",
    corrections: int = 1,
    snr: float = 0.16,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Predictor-corrector sampling (Song et al., 2021, algorithm 1), with Langevin correctors.

    Each step of the ``predictor`` ("ancestral", "ddim" or "euler_maruyama") is followed by
    ``corrections`` steps of Langevin dynamics at the new time, which cost as many evaluations.
    ``snr``, above 0, sets their length: it is the ratio of drift to noise, up to a factor. There
    are none at sigma = 0. Arguments, result and errors as for
    :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if an option is out of range.
    """
    if predictor not in _PREDICTORS or corrections < 0 or not snr > 0:
        raise ValueError(
            f"predictor must be one of {', '.join(_PREDICTORS)}, corrections at least 0 and snr "
            f"above 0; got {predictor!r}, {corrections} and {snr}"
        )
    predict = _PREDICTORS[predictor]
    for i, _, s in walk(denoiser.path, x, ts):
        x = predict(denoiser, x, ts[i : i + 2], cond=cond, generator=generator)
        for _ in range(corrections if s.sigma > 0 else 0):
            score = denoiser.score(x, s.times, cond)
            x = _langevin_step(x, score, snr, generator)
        if callback:
            callback(i, s.time, x)
    return x


_PREDICTORS = {f.__name__: f for f in (ancestral, ddim, euler_maruyama)}


def _langevin_step(
    x: Tensor, score: Tensor, snr: float, generator: torch.Generator | None
) -> Tensor:
    """x + step score + sqrt(2 step) z (Song et al., 2021, algorithms 4 and 5).

    The step is 2 (snr |z| / |score|)^2, with norms averaged over the batch.
    """
    z = torch.empty_like(x).normal_(generator=generator)
    z_norm, score_norm = (v.flatten(1).norm(dim=1).mean() for v in (z, score))
    step = 2 * (snr * z_norm / score_norm) ** 2
    return x + step * score + torch.sqrt(2 * step) * z
