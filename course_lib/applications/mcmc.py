"""Langevin dynamics at every noise level: samples of composed models by corrected steps.

It aims at the annealed targets q_t of a product, which end in the product itself at t = 0.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.applications.composition import log_density
from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import expand
from course_lib.samplers import ancestral, ddim
from course_lib.samplers.grids import walk
from course_lib.samplers.ode import Callback

__all__ = [
    "annealed_langevin",
    "langevin",
    "line_integral",
]

Metropolis = Literal["no", "density", "line"]
PREDICTORS = {"ancestral": ancestral, "ddim": ddim, "none": None}


def langevin(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    *,
    step: float,
    steps: int = 1,
    metropolis: Metropolis = "no",
    cond: Any = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Langevin dynamics at one time: x + h score + sqrt(2 h) z, several times.

    Without a Metropolis step (ULA) the result is biased by h: variance v / (1 - h / 2v) for data
    N(0, v). With it (MALA) a move is accepted with probability min(1, q(x') k(x | x') /
    (q(x) k(x' | x))), and q_t is invariant for every h (Roberts & Tweedie, 1996).

    Args:
        denoiser: whose score is followed.
        x: states, shape (B, ...).
        t: times, shape (B,).
        step: h, above 0.
        steps: how many.
        metropolis: "no"; "density", by the exact log-density; or "line", by the trapezoidal line
            integral of the score, for models without a density (Sjoberg et al., 2023, "MCMC-
            Correction of Score-Based Diffusion Models for Model Composition"; not exact).
        cond: condition for the denoiser.
        generator: source of the randomness.

    Returns:
        The states, shape (B, ...), and the share of moves that were accepted.

    Raises:
        TypeError: if the denoiser is a bare network, or has no density and needs one.
        ValueError: if an option is out of range.
    """
    check_denoiser(denoiser)
    _check_langevin(step, steps, metropolis)
    accepted, score = 0, denoiser.score(x, t, cond) if steps else x
    for _ in range(steps):
        z = torch.empty_like(x).normal_(generator=generator)
        y = x + step * score + math.sqrt(2 * step) * z
        score_y = denoiser.score(y, t, cond)
        keep = torch.ones_like(t, dtype=torch.bool)
        if metropolis != "no":
            log_ratio = _proposals(step, z, x - y - step * score_y)
            if metropolis == "density":
                log_ratio += log_density(denoiser, y, t, cond) - log_density(denoiser, x, t, cond)
            else:
                log_ratio += _dot(score + score_y, y - x) / 2
            u = torch.empty_like(log_ratio).uniform_(generator=generator)
            keep = u.log() < log_ratio
        x, score = (torch.where(expand(keep, x), a, b) for a, b in ((y, x), (score_y, score)))
        accepted += int(keep.sum())
    return x, accepted / max(1, steps * len(x))


def annealed_langevin(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    corrections: int = 5,
    step: float = 0.1,
    data_std: float = 0.0,
    metropolis: Metropolis = "no",
    predictor: Literal["ancestral", "ddim", "none"] = "none",
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Langevin dynamics at every time of the grid: samples of a composed model.

    Du et al., 2023, "Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion
    Models and MCMC", algorithm 1. A solver like any other, so ``sample(product, shape,
    solver=annealed_langevin)`` takes it. The step at time t is h = step (alpha^2 data_std^2 +
    sigma^2), for p_t has no feature narrower than that; a product of Gaussians can be narrower by
    the sum of its weights, so take ``step`` well below 2 / sum(w). Where it is 0, at t = 0 without
    ``data_std``, the last step denoises, by DDIM.

    Args:
        denoiser: any; for a product, where ODE and SDE solvers stay wrong however many steps they
            take, this becomes right with many corrections and a small step.
        x: noise at ts[0], shape (B, ...).
        ts: falling times.
        corrections: Langevin steps at each time but the first.
        step: h in units of the least variance of p_t.
        data_std: least standard deviation of a feature of the data; 0 if not known.
        metropolis: as for :func:`langevin`.
        predictor: what moves states from one time to the next, before they are corrected.
        cond: condition for the denoiser.
        generator: source of the randomness.
        callback: called with the step, its time and the states.

    Raises:
        TypeError: as for :func:`langevin`.
        ValueError: if an option is out of range, or the grid does not fall.
    """
    check_denoiser(denoiser)
    _check_langevin(step, corrections, metropolis)
    _check_annealing(predictor, data_std)
    move = PREDICTORS[predictor]
    for i, _, s in walk(denoiser.path, x, ts):
        h = step * (s.alpha**2 * data_std**2 + s.sigma**2)
        if move is not None or h == 0:
            x = (move or ddim)(denoiser, x, ts[i : i + 2], cond=cond, generator=generator)
        if h > 0:
            options = {"cond": cond, "generator": generator, "metropolis": metropolis}
            x, _ = langevin(denoiser, x, s.times, step=h, steps=corrections, **options)
        if callback:
            callback(i, s.time, x)
    return x


def line_integral(
    denoiser: Denoiser,
    corners: Tensor,
    t: float,
    *,
    points: int = 16,
    cond: Any = None,
) -> float:
    """The integral of the score along straight lines from corner to corner.

    If the score is a gradient, of log p_t, this is log p_t at the last corner less that at the
    first, whatever lies between; round a closed polygon it is 0. For a network it is neither.

    Args:
        denoiser: whose score is integrated.
        corners: shape (C, ...), C at least 2; the first again at the end for a closed polygon.
        t: the time.
        points: of Gauss-Legendre quadrature on each line.
        cond: condition for the denoiser, one row for all.

    Raises:
        ValueError: if there are fewer than two corners.
    """
    from numpy.polynomial.legendre import leggauss

    if len(corners) < 2:
        raise ValueError(f"corners must be at least two points; got {len(corners)}")
    nodes, weights = (torch.as_tensor(v).to(corners) for v in leggauss(points))
    total = 0.0
    for a, b in itertools.pairwise(corners):
        x = a + torch.tensordot((nodes + 1) / 2, b - a, 0)
        score = denoiser.score(x, x.new_full((points,), t), cond)
        total += (weights / 2 @ (score * (b - a)).flatten(1).sum(1)).item()
    return total


def _proposals(step: float, z: Tensor, back: Tensor) -> Tensor:
    """log k(x | x') - log k(x' | x); ``back`` is what noise the way back would need."""
    return (2 * step * _dot(z, z) - _dot(back, back)) / (4 * step)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each pair of samples, shape (B,)."""
    return (a * b).flatten(1).sum(1)


def _check_langevin(step: float, steps: int, metropolis: str) -> None:
    if not step > 0 or steps < 0 or metropolis not in ("no", "density", "line"):
        raise ValueError(
            f"step must be above 0, the number of steps at least 0 and metropolis no, density or "
            f"line; got {step}, {steps} and {metropolis!r}"
        )


def _check_annealing(predictor: str, data_std: float) -> None:
    if predictor not in PREDICTORS or not data_std >= 0:
        raise ValueError(
            f"predictor must be one of {', '.join(PREDICTORS)} and data_std at least 0; got "
            f"{predictor!r} and {data_std}"
        )
