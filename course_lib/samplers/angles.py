"""The noise level as an angle: one clock on which all paths are the same.

Divide x_t by r = sqrt(alpha^2 + sigma^2), and let phi = atan2(sigma, alpha). Then
y = x_t / r = cos(phi) x0 + sin(phi) eps, and the probability-flow ODE is ``dy/dphi = v / r`` on
every path (Salimans & Ho, 2022, appendix D). In the angle nothing is infinite at either end, and
a path whose noise rate jumps, as DDPM's does, looks smooth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.paths import Path

__all__ = ["State", "angle_grid", "angle_of_time", "radius", "runge_kutta_step", "time_of_angle"]

State = tuple[Tensor, ...]
"""What is integrated in phi: y, and what goes with it."""


def radius(path: Path, t: Tensor) -> Tensor:
    """r = sqrt(alpha^2 + sigma^2), the shape of t."""
    return torch.hypot(path.alpha(t), path.sigma(t))


def angle_of_time(path: Path, t: Tensor) -> Tensor:
    """phi = atan2(sigma, alpha), from near 0 at the data up to about pi/2 at the noise."""
    return torch.atan2(path.sigma(t), path.alpha(t))


def time_of_angle(path: Path, angle: Tensor) -> Tensor:
    """The time at which lambda = log(alpha / sigma) is -log tan(angle)."""
    return path.t_of_lambda(-torch.log(torch.tan(angle))).clamp(0, 1)


def angle_grid(
    path: Path, steps: int, *, power: float = 1.0, t_max: float = 1.0, t_min: float = 0.0
) -> Tensor:
    """A falling grid with steps of equal length in the angle, shape (steps + 1,).

    With ``power`` above 1 the steps shrink towards the data, as u^power for u uniform. The times
    are not moved to the steps of a discrete path.

    Raises:
        ValueError: if ``steps`` < 1, or not 0 <= t_min < t_max <= 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"t_min and t_max need 0 <= t_min < t_max <= 1; got {t_min} and {t_max}")
    ends = torch.tensor([t_max, t_min], dtype=torch.float64)
    high, low = angle_of_time(path, ends)
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
    inner = time_of_angle(path, low + (high - low) * u**power)
    return torch.cat([ends[:1], inner, ends[1:]])


def runge_kutta_step(
    rate: Callable[[State, Tensor], State], path: Path, state: State, t: Tensor, s: Tensor
) -> State:
    """One step of the classical Runge-Kutta method in phi, from time t to s, up or down.

    Args:
        rate: maps a state and a time, a scalar tensor, to the derivatives by phi.
        path: gives the angles.
        state: the state at time t.
        t: start, a scalar tensor.
        s: end, a scalar tensor.

    Returns:
        The state at time s.
    """
    start, end = angle_of_time(path, t), angle_of_time(path, s)
    h, middle = end - start, time_of_angle(path, (start + end) / 2)

    def moved(length: Tensor, slopes: State) -> State:
        return tuple(value + length * k for value, k in zip(state, slopes, strict=True))

    k1 = rate(state, t)
    k2 = rate(moved(h / 2, k1), middle)
    k3 = rate(moved(h / 2, k2), middle)
    k4 = rate(moved(h, k3), s)
    slopes = zip(k1, k2, k3, k4, strict=True)
    return moved(h / 6, tuple(a + 2 * b + 2 * c + d for a, b, c, d in slopes))
