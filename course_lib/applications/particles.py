"""Weighted particles: samples of a product by what its reverse SDE leaves out.

A product of diffused models does not follow the Fokker-Planck equation of its summed score. The
difference is a rate at which each particle gains or loses weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from course_lib.applications.composition import ProductOfExperts
from course_lib.samplers import ddim
from course_lib.samplers.grids import walk
from course_lib.samplers.ode import Callback

__all__ = ["effective_sample_size", "feynman_kac", "systematic_resampling"]


def feynman_kac(
    product: ProductOfExperts,
    x: Tensor,
    ts: Tensor,
    *,
    threshold: float = 0.5,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    record: list[float] | None = None,
) -> Tensor:
    """Weighted particles along the reverse SDE of a product (Skreta et al., 2025).

    "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts". The drift
    is that of the summed score s = sum_i w_i s_i, and the weights repair what is wrong with it:
    ``d log W = g^2 / 2 (|s|^2 - sum_i w_i |s_i|^2) d tau``, tau = 1 - t, for any weights w_i and on
    any path. Particles start from q_1 = N(0, sigma^2 / sum(w)). They are resampled where the
    effective sample size falls below ``threshold`` of their number, and after the last step. A last
    step to sigma = 0 is by DDIM, without noise or weight.

    Args:
        product: the experts, each of them a noised density, p_t = (p_0)_t, at every time: a guided
            model or another product is none, so write out its factors. A grid must begin where
            alpha > 0, since g is infinite at 0.
        x: noise sigma(ts[0]) eps, the particles, shape (N, ...).
        ts: falling times.
        threshold: in [0, 1]; 0 resamples only at the end, 1 at every step.
        cond: condition for the experts.
        generator: source of the randomness.
        callback: called with the step, its time and the particles.
        record: a list that gets the effective sample size, as a share of N, of every step.

    Returns:
        Particles of equal weight, shape (N, ...).

    Raises:
        TypeError: if ``product`` is no ProductOfExperts.
        ValueError: if ``threshold`` lies outside [0, 1], the weights do not sum to more than 0, or
            the grid begins at alpha = 0.
    """
    _check_particles(product, threshold)
    x = x / math.sqrt(math.fsum(product.weights))
    log_w = x.new_zeros(len(x))
    for i, t, s in walk(product.path, x, ts):
        if s.sigma == 0:  # nothing left to weigh
            x = ddim(product, x, ts[i : i + 2], cond=cond)
        else:
            x, gain = _weighted_step(product, x, t, s, cond, generator)
            log_w = log_w + gain
        share = effective_sample_size(log_w) / len(x)
        if share < threshold or i == len(ts) - 2:
            x, log_w = x[systematic_resampling(log_w, generator)], torch.zeros_like(log_w)
        if record is not None:
            record.append(share)
        if callback:
            callback(i, s.time, x)
    return x


def _weighted_step(
    product: ProductOfExperts,
    x: Tensor,
    t: Any,
    s: Any,
    cond: Any,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama for the particles, and the change of their log-weights, shape (B,)."""
    f, g2 = product.path.drift_diffusion(t.time[None])
    h = t.time - s.time
    scores = product.scores(x, t.times, cond)
    weights = scores.new_tensor(product.weights)
    total = torch.tensordot(weights, scores, 1)
    gain = total.flatten(1).square().sum(1) - weights @ scores.flatten(2).square().sum(-1)
    z = torch.empty_like(x).normal_(generator=generator)
    x = x + h * (g2 * total - f * x) + (g2 * h).sqrt() * z
    return x, g2 / 2 * h * gain


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum W)^2 / sum W^2, from 1 (one particle has all) to N (all have the same).

    Args:
        log_weights: shape (N,).
    """
    weights = log_weights.softmax(0)
    return (1 / weights.square().sum()).item()


def systematic_resampling(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Which particles go on: one uniform draw, then N equal strides through the weights.

    A particle of normalised weight W is taken floor(N W) or ceil(N W) times, N W on average
    (Kitagawa, 1996). Douc, Cappe & Moulines, 2005, "Comparison of Resampling Schemes for Particle
    Filtering", show that its variance, unlike that of stratified resampling, has no general bound
    by that of independent draws.

    Args:
        log_weights: shape (N,).
        generator: source of the one random number.

    Returns:
        Indices, int64, shape (N,), rising.
    """
    N = len(log_weights)
    ends = log_weights.double().softmax(0).cumsum(0)
    u = torch.empty(1, dtype=torch.float64, device=ends.device).uniform_(generator=generator)
    at = (torch.arange(N, device=ends.device) + u) / N
    return torch.searchsorted(ends, at).clamp(max=N - 1)


def _check_particles(product: Any, threshold: float) -> None:
    if not isinstance(product, ProductOfExperts):
        raise TypeError(f"product must be a ProductOfExperts; got {type(product).__name__}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1]; got {threshold}")
    if not math.fsum(product.weights) > 0:
        raise ValueError(
            f"the weights must sum to more than 0, or there is no noise to start from; got "
            f"{list(product.weights)}"
        )
