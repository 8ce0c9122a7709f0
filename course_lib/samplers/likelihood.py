"""The log-density that a denoiser gives to data, by the change of variables along its ODE.

In the angle phi of :mod:`course_lib.samplers.angles` the probability-flow ODE is
``dy/dphi = v / r``. Along a trajectory the log-density of y changes by ``-div(v / r)``
(Chen et al., 2018, "Neural ODEs"; Song et al., 2021, section 4.3).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser, check_gradients
from course_lib.samplers.angles import State, angle_grid, radius, runge_kutta_step
from course_lib.samplers.grids import check_grid

__all__ = ["log_likelihood"]

Trace = Literal["exact", "hutchinson"]
Probe = Literal["rademacher", "gaussian"]


def log_likelihood(
    denoiser: Denoiser,
    x0: Tensor,
    ts: Tensor | None = None,
    *,
    trace: Trace = "exact",
    probes: int = 1,
    probe: Probe = "rademacher",
    prior: Callable[[Tensor], Tensor] | None = None,
    cond: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log-density of ``x0`` under the samples of the probability-flow ODE, in nats.

    The ODE runs from the data to the noise with the classical Runge-Kutta method, four evaluations
    a step, and the integral of the divergence runs with it. The trace of the Jacobian is exact, one
    backward pass for each of the D coordinates, or Hutchinson's unbiased estimate from random
    probes e, mean of e^T J e, the same probes at all times (Grathwohl et al., 2019, "FFJORD").

    The answer is the density at time ts[-1]. That is the data's own only if the grid ends at 0;
    denoisers that are singular there need an end slightly above, as in the default grid. Points
    far outside of the data, where the score is steep, need more steps than the default.

    The trajectory ends in the Gaussian N(0, sigma^2 I) from which ``sample`` starts. Where
    alpha(1) > 0 this is not quite the law of x_1 (VP, DiscreteVP, VE); pass ``prior`` to
    put another density there.

    Args:
        denoiser: any Denoiser.
        x0: points, shape (B, ...), D numbers each.
        ts: falling times, as for the solvers, walked in reverse; by default 100 steps of equal
            angle between t = 1 and t = 0.001.
        trace: "exact" or "hutchinson".
        probes: number of random probes for each point.
        probe: "rademacher" (signs, no variance from the diagonal of the Jacobian) or "gaussian".
        prior: log-density of x at time ts[0], (B, ...) -> (B,).
        cond: passed to the denoiser.
        generator: source of the probes.

    Returns:
        Shape (B,), without gradient.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if a name is unknown, ``probes`` < 1, the grid is none, or the call stands
            inside ``torch.inference_mode()``.
    """
    check_denoiser(denoiser)
    check_gradients("log_likelihood")
    _check(trace, probes, probe)
    path, x0 = denoiser.path, x0.detach()
    ts = angle_grid(path, 100, t_min=1e-3) if ts is None else ts
    check_grid(ts)
    ts = ts.to(x0)
    directions = _directions(x0, trace, probes, probe, generator)

    def rate(state: State, t: Tensor) -> State:
        return _rate(denoiser, state[0], t, cond, directions)

    state: State = x0 / radius(path, ts[-1]), x0.new_zeros(len(x0))
    for t, s in pairwise(ts.flip(0)):  # from the data up to the noise
        state = runge_kutta_step(rate, path, state, t, s)
    y, integral = state
    x1 = y * radius(path, ts[0])
    end = _gaussian(x1, path.sigma(ts[0])) if prior is None else prior(x1)
    # log p(x) = log p(y) - D log r at both ends, and log p(y) falls by the integral on the way.
    stretch = torch.log(radius(path, ts[0]) / radius(path, ts[-1]))
    return end + x0[0].numel() * stretch + integral


def _rate(denoiser: Denoiser, y: Tensor, t: Tensor, cond: Any, directions: Tensor) -> State:
    """v / r and its divergence in y, which is that of v in x: the factors r cancel."""
    r = radius(denoiser.path, t)
    with torch.enable_grad():  # solvers and learners run under no_grad
        x = (y * r).requires_grad_()
        v = denoiser.v(x, t.expand(len(x)), cond)
        # Rows e^T J: reverse mode, which every network has; forward mode lacks fused attention.
        rows = [torch.autograd.grad(v, x, e.expand_as(v), retain_graph=True)[0] for e in directions]
    traces = [(row * e).flatten(1).sum(1) for row, e in zip(rows, directions, strict=True)]
    return v.detach() / r, torch.stack(traces).sum(0)


def _directions(
    x: Tensor, trace: Trace, probes: int, probe: Probe, generator: torch.Generator | None
) -> Tensor:
    """Vectors e with sum of e^T J e the trace: (D, 1, ...) the basis, or (probes, B, ...)."""
    if trace == "exact":
        d = x[0].numel()
        return torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
    e = torch.empty(probes, *x.shape, dtype=x.dtype, device=x.device)
    if probe == "rademacher":
        e = 2 * e.bernoulli_(0.5, generator=generator) - 1
    else:
        e = e.normal_(generator=generator)
    return e / math.sqrt(probes)


def _gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Log-density of N(0, sigma^2 I), shape (B,)."""
    return -0.5 * ((x / sigma) ** 2 + torch.log(2 * math.pi * sigma**2)).flatten(1).sum(1)


def _check(trace: str, probes: int, probe: str) -> None:
    for name, value, allowed in (("trace", trace, Trace), ("probe", probe, Probe)):
        if value not in get_args(allowed):
            names = " or ".join(repr(v) for v in get_args(allowed))
            raise ValueError(f"{name} must be {names}; got {value!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1; got {probes}")
