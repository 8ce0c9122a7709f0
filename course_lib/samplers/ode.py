"""Solvers of the probability-flow ODE ``dx/dt = velocity(x, t)``, straight from the textbook."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.samplers.grids import walk

__all__ = ["Callback", "dopri5", "euler", "heun", "rk4"]

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
    for i, t, s in walk(denoiser.path, x, ts):
        x = x + (s.time - t.time) * denoiser.velocity(x, t.times, cond)
        if callback:
            callback(i, s.time, x)
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
    for i, t, s in walk(denoiser.path, x, ts):
        velocity = denoiser.velocity(x, t.times, cond)
        if s.sigma > 0:
            proposal = x + (s.time - t.time) * velocity
            velocity = (velocity + denoiser.velocity(proposal, s.times, cond)) / 2
        x = x + (s.time - t.time) * velocity
        if callback:
            callback(i, s.time, x)
    return x


def rk4(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """The classical Runge-Kutta method: order 4, four evaluations a step.

    A step that ends at sigma = 0, where the velocity may be singular, is Ralston's of order 3: it
    asks for no velocity at its end, and one local error O(h^4) leaves the order at 4.
    Arguments as for :func:`euler`.
    """
    for i, t, s in walk(denoiser.path, x, ts):
        h = s.time - t.time
        k1 = denoiser.velocity(x, t.times, cond)
        k2 = denoiser.velocity(x + h / 2 * k1, t.times + h / 2, cond)
        if s.sigma > 0:
            k3 = denoiser.velocity(x + h / 2 * k2, t.times + h / 2, cond)
            k4 = denoiser.velocity(x + h * k3, s.times, cond)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        else:
            k3 = denoiser.velocity(x + 3 / 4 * h * k2, t.times + 3 / 4 * h, cond)
            x = x + h / 9 * (2 * k1 + 3 * k2 + 4 * k3)
        if callback:
            callback(i, s.time, x)
    return x


def dopri5(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    norm: Literal["batch", "sample"] = "batch",
    max_steps: int = 1000,
    t_min: float = 1e-5,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """The method of Dormand and Prince (1980), order 5 with an error estimate of order 4.

    It chooses its own steps between two times of the grid, so ``ts`` may be [1, 0]. All samples
    share a step. It is accepted if ``error / (atol + rtol max(abs(x), abs(x_next)))`` has a root
    mean square of at most 1: over the whole batch, or, with ``norm="sample"``, over each sample
    by itself, so that no sample depends on how easy its neighbours are. At most ``max_steps``
    steps, rejected ones included, lead from one time of the grid to the next. Where sigma is 0 at
    the end of the grid the velocity may be singular, so the last ``t_min`` is one Euler step.
    Arguments, result and errors as for :func:`euler`; besides:

    Raises:
        ValueError: if an option is out of range or ``max_steps`` do not suffice.
    """
    control = _StepControl(atol, rtol, norm, max_steps)

    def velocity(x: Tensor, t: float) -> Tensor:
        return denoiser.velocity(x, x.new_full((len(x),), t), cond)

    for i, t, s in walk(denoiser.path, x, ts):
        start, end = float(t.exact), float(s.exact)
        stop = end if s.sigma > 0 else min(max(end, t_min), start)
        x, slope = control.integrate(velocity, x, start, stop)
        x = x + (end - stop) * slope
        if callback:
            callback(i, s.time, x)
    return x


_Velocity = Callable[[Tensor, float], Tensor]

# The tableau of Dormand & Prince (1980): nodes c, rows a, and b5 - b4. The last row is b5, so
# the last slope of a step is the first of the next.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _dopri5_step(
    velocity: _Velocity, x: Tensor, t: float, s: float, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x at s, its slope there, and the estimated error."""
    h, slopes, point = s - t, [slope], x
    for c, row in zip(_NODES, _ROWS, strict=True):
        point = x + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
        slopes.append(velocity(point, t + c * h))
    error = h * sum(e * k for e, k in zip(_ERROR, slopes, strict=True) if e)
    return point, slopes[-1], torch.as_tensor(error)


@dataclass
class _StepControl:
    """PI control of the step (Gustafsson, 1991; Hairer & Wanner, "Solving ODEs II", IV.2)."""

    atol: float
    rtol: float
    norm: str
    max_steps: int
    length: float | None = None  # of the next step, kept from one interval to the next
    slope: Tensor | None = None  # where the last step ended
    last_error: float = 1.0

    def __post_init__(self) -> None:
        if not (self.atol > 0 and self.rtol >= 0 and self.max_steps >= 1):
            raise ValueError(
                f"dopri5 needs atol > 0, rtol >= 0 and max_steps >= 1; got atol={self.atol}, "
                f"rtol={self.rtol}, max_steps={self.max_steps}"
            )
        if self.norm not in ("batch", "sample"):
            raise ValueError(f'norm must be "batch" or "sample"; got {self.norm!r}')

    def integrate(
        self, velocity: _Velocity, x: Tensor, t: float, stop: float
    ) -> tuple[Tensor, Tensor]:
        """x at ``stop``, and its slope there."""
        slope = velocity(x, t) if self.slope is None else self.slope
        if self.length is None:  # Hairer, Norsett & Wanner, "Solving ODEs I", II.4, first guess
            guess = 0.01 * self._size(x, x) / max(1e-12, self._size(slope, x))
            self.length = max(guess, 1e-6)  # x = 0 would give no step at all
        for _ in range(self.max_steps):
            if t <= stop:
                self.slope = slope
                return x, slope
            s = stop if t - stop <= 1.01 * self.length else t - self.length
            proposal, next_slope, error = _dopri5_step(velocity, x, t, s, slope)
            if self._accept(self._size(error, torch.maximum(x.abs(), proposal.abs())), t - s):
                x, slope, t = proposal, next_slope, s
        raise ValueError(
            f"dopri5 took max_steps = {self.max_steps} steps and is still at t = {t:.4g}, above "
            f"{stop:.4g}: raise max_steps, or atol = {self.atol} and rtol = {self.rtol}"
        )

    def _size(self, value: Tensor, x: Tensor) -> float:
        """Root mean square of ``value`` in units of the tolerance at ``x``."""
        squares = (value / (self.atol + self.rtol * x.abs())).square().flatten(1).mean(1)
        return (squares.max() if self.norm == "sample" else squares.mean()).sqrt().item()

    def _accept(self, error: float, taken: float) -> bool:
        """Judge a step of the length ``taken`` and set the length of the next."""
        accepted, error = error <= 1, max(error, 1e-10) if error <= 1 else error
        planned = self.length or taken
        if accepted:
            factor = 0.9 * error ** (-0.7 / 5) * self.last_error ** (0.4 / 5)
            grown = taken * min(max(factor, 0.2), 10.0)
            self.length = max(grown, planned) if taken < planned else grown
            self.last_error = error
        else:  # a NaN ends here too, and gives 0.2
            self.length = taken * max(0.2, 0.9 * error ** (-1 / 5))
        return accepted
