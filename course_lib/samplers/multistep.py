"""Multistep solvers: earlier predictions tell how the present one changes, at no further cost.

With the data prediction D, and h = lambda_s - lambda_t,
``x_s = sigma_s/sigma_t x_t + alpha_s int_0^h e^(r - h) D(lambda_t + r) dr`` (Lu et al., 2022,
"DPM-Solver++", eq. 8). Each solver puts a polynomial through the predictions that it has and
integrates that. Where lambda is infinite (sigma_s = 0, or alpha_t = 0) the polynomial is a
constant, and a step to sigma_s = 0 returns D.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.paths import Path
from course_lib.samplers.dpm import ddim, own_prediction
from course_lib.samplers.grids import Knot, check_grid, walk
from course_lib.samplers.ode import Callback

__all__ = ["deis", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc"]


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
    previous, h_previous = list[Term](), math.inf
    for i, t, s in walk(denoiser.path, x, ts):
        h = s.lam - t.lam
        w = h / (2 * h_previous) if h < math.inf else 0.0  # 1/(2r), r = h_previous / h
        a, b, prediction = own_prediction(denoiser, x, t, cond, "data")  # D = a x + b prediction
        shrink = s.sigma / t.sigma
        gain = s.alpha - t.alpha * shrink
        now = [(shrink + gain * (1 + w) * a, x), (gain * (1 + w) * b, prediction)]
        before = [(-gain * w * weight, value) for weight, value in previous]
        previous, h_previous = [(a, x), (b, prediction)], h
        x = _weighted_sum(now + before)
        if callback:
            callback(i, s.time, x)
    return x


def dpm_solver_pp_3m(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(3M): order 3, one evaluation a step (Lu et al., 2022, "DPM-Solver++").

    A parabola in lambda through the last three data predictions, integrated exactly. (The code
    that accompanies the paper takes half of the second difference, and has order 2.) The first
    step is of order 1 and the second of order 2, so order 3 shows on grids that begin with short
    steps. Arguments, result and errors as for :func:`course_lib.samplers.euler`.
    """
    seen: list[Seen] = []
    for i, t, s in walk(denoiser.path, x, ts):
        seen = _latest(3, (t, denoiser.data(x, t.times, cond)), seen)
        x = _exponential_step(x, t, s, seen)
        if callback:
            callback(i, s.time, x)
    return x


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    order: int = 3,
    corrector: bool = True,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """UniPC with B_2(h) and data prediction, one evaluation a step (Zhao et al., 2023).

    The predictor of ``order`` 1, 2 or 3 (algorithm 2) is DDIM, DPM-Solver++(2M) or (3M). The
    ``corrector`` (algorithm 1) takes each step a second time, with the prediction made at its end
    among the others. The next step needs that prediction anyway, so the gain costs nothing.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3.
    """
    _check_order(order)
    seen: list[Seen] = []
    start = x  # of the last step
    for i, t, s in walk(denoiser.path, x, ts):
        now = t, denoiser.data(x, t.times, cond)
        if corrector and seen:
            x = _exponential_step(start, seen[0][0], t, [*seen, now])
        seen = _latest(order, now, seen)
        start, x = x, _exponential_step(x, t, s, seen)
        if callback:
            callback(i, s.time, x)
    return x


def deis(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    order: int = 3,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DEIS, the variant tAB (Zhang & Chen, 2023, eq. 14 and 15): one evaluation a step.

    A polynomial in t through the last ``order`` noise predictions (1, 2 or 3), integrated against
    d(sigma / alpha). The first steps are of lower order, as in :func:`dpm_solver_pp_3m`.
    Arguments, result and errors as for :func:`course_lib.samplers.euler`; besides:

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3.
    """
    _check_order(order)
    moments = _moments_in_time(denoiser.path, ts, order)
    seen: list[Seen] = []
    for i, t, s in walk(denoiser.path, x, ts):
        if t.alpha == 0:  # x is noise, and sigma / alpha is infinite: no polynomial yet
            seen, x = [(t, x / t.sigma)], ddim(denoiser, x, ts[i : i + 2], cond=cond)
        else:
            seen = [(t, denoiser.noise(x, t.times, cond)), *seen][:order]
            places = [knot.exact - t.exact for knot, _ in seen]
            weights = lagrange_weights(places, moments[i])
            x = _add_up(s.alpha / t.alpha, x, s.alpha, weights, seen)
        if callback:
            callback(i, s.time, x)
    return x


Seen = tuple[Knot, Tensor]
"""Where a prediction was made, and the prediction."""
Term = tuple[Any, Tensor]
"""A weight and what it multiplies."""


def lagrange_weights(places: Sequence[Any], moments: Sequence[Any]) -> list[Any]:
    """Weights w_j for which ``sum_j w_j f(places[j])`` integrates polynomials exactly.

    Args:
        places: n different numbers.
        moments: the integrals of r^k for k = 0..n-1 (more are not used).

    Returns:
        n weights: w_j integrates Lagrange's polynomial prod_{k != j} (r - r_k) / (r_j - r_k).
    """
    weights = []
    for j, place in enumerate(places):
        others = [*places[:j], *places[j + 1 :]]
        powers: list[Any] = [1.0]  # coefficients of prod (r - r_k), rising
        for other in others:
            shifted = [0.0, *powers]
            powers = [a - other * b for a, b in zip(shifted, [*powers, 0.0], strict=True)]
        integral = sum(c * m for c, m in zip(powers, moments, strict=False))
        weights.append(integral / math.prod(place - other for other in others))
    return weights


def _exponential_step(x: Tensor, t: Knot, s: Knot, seen: list[Seen]) -> Tensor:
    """From t to s, with the polynomial in lambda through the data predictions ``seen``."""
    h = s.lam - t.lam
    if h == math.inf:
        seen = seen[:1]
    shrink = s.sigma / t.sigma
    moments = [1 - t.alpha / s.alpha * shrink]  # int_0^h e^(r - h) r^k dr, by parts
    for k in range(1, len(seen)):
        moments.append(h**k - k * moments[-1])
    places = [knot.lam - t.lam for knot, _ in seen]
    if len(seen) == 2:  # UniPC sets B_2(h) / 2 for the weight of a lone difference, as does 2M
        moments[1] = h / 2 * moments[0]
    weights = lagrange_weights(places, moments)
    return _add_up(shrink, x, s.alpha, weights, seen)


def _latest(order: int, now: Seen, seen: list[Seen]) -> list[Seen]:
    """The last predictions, newest first, without those where lambda is infinite."""
    return [now, *(old for old in seen if old[0].lam > -math.inf)][:order]


def _add_up(factor: Any, x: Tensor, gain: Any, weights: list[Any], seen: list[Seen]) -> Tensor:
    """factor x + gain sum_j w_j D_j."""
    terms = [(gain * w, value) for w, (_, value) in zip(weights, seen, strict=True)]
    return _weighted_sum([(factor, x), *terms])


def _weighted_sum(terms: list[Term]) -> Tensor:
    """sum_j w_j y_j, in one pass over memory for each w_j that is not 0."""
    first, *rest = [(w, y) for w, y in terms if isinstance(w, Tensor) or w != 0]
    total = first[0] * first[1]
    for w, y in rest:
        total = total + w * y if isinstance(w, Tensor) else torch.add(total, y, alpha=w)
    return total


def _moments_in_time(path: Path, ts: Tensor, order: int) -> list[list[Any]]:
    """int (tau - t)^k d rho over each step, rho = sigma / alpha, for k < order.

    Gauss-Legendre in rho, in which nothing is infinite at sigma = 0 on any path.
    """
    check_grid(ts)
    ts = ts.double()
    u, w = (torch.as_tensor(v, device=ts.device) for v in np.polynomial.legendre.leggauss(64))
    rho = path.sigma(ts) / path.alpha(ts)
    rho = torch.where(rho.isfinite(), rho, 1.0)  # alpha = 0: that step does not ask
    half = rho.diff()[:, None] / 2
    tau = path.t_of_lambda(-torch.log(rho[:-1, None] + half * (1 + u)))
    powers = [(tau - ts[:-1, None]) ** k for k in range(order)]
    moments = torch.stack([(half * w * power).sum(1) for power in powers], dim=1)
    return [list(row) for row in moments] if ts.requires_grad else moments.tolist()


def _check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3; got {order}")
