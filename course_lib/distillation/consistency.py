"""Consistency models: one network that maps every point of an ODE path to the end of the path.

Song et al., 2023, "Consistency Models"; with the improved recipe of Song and Dhariwal, 2024,
"Improved Techniques for Training Consistency Models". Both let time be sigma, on VE. Here it runs
on every path, since their consistency function is one step of DDIM (:func:`consistency_function`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.distillation.teachers import asked, described
from course_lib.objectives import uniform_times
from course_lib.paths import Face, Path, expand
from course_lib.samplers.grids import knots, uniform_grid, walk
from course_lib.samplers.ode import Callback

__all__ = [
    "STEPS",
    "T_MIN",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "consistency",
    "consistency_function",
    "ddim_step",
    "multistep",
    "pseudo_huber",
    "skip_out",
    "squared_distance",
]

T_MIN = 0.002
"""Where the paths end: close to the data, but off t = 0, where some conversions are singular."""
Grid = Callable[..., Tensor]
"""``grid(path, steps, t_min=...) -> (steps + 1,)``, falling from 1; as in `samplers.grids`."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""``distance(a, b) -> (B,)``."""


def skip_out(
    path: Path, t: Tensor, predicts: Face, t_min: float | Tensor = T_MIN
) -> tuple[Tensor, Tensor]:
    """The numbers with ``f(x, t) = c_skip x + c_out prediction``, each of shape (B,).

    A prediction p x0 + q eps and x = alpha x0 + sigma eps are two equations for x0 and eps, of
    which f takes alpha(t_min) x0 + sigma(t_min) eps. At t_min this is x, whatever the network
    says: c_skip = 1 and c_out = 0 to the last bit. Song et al. (2023, eq. 5) ask for just that
    of their c_skip and c_out. A v prediction on a variance-preserving path gives cos(d) x -
    sin(d) v (Lu and Song, 2025, TrigFlow), a velocity on Linear x - (t - t_min) velocity.

    Args:
        path: the path.
        t: times, shape (B,).
        predicts: what the network predicts.
        t_min: where f ends, a number or one for each sample.

    Raises:
        ValueError: if ``predicts`` is unknown, or no prediction of this kind gives x0 and eps at
            such a time: the noise where alpha = 0, for instance.
    """
    s = torch.as_tensor(t_min, dtype=t.dtype, device=t.device).expand(t.shape)
    alpha, sigma, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    p, q, scale = path._row(t, predicts)
    det = alpha * q - sigma * p
    skip = (alpha_s * q - sigma_s * p) / det
    out = (sigma_s * alpha - alpha_s * sigma) / det * scale
    path._refuse_singular(t, skip, out, what=f"a DDIM step from a prediction of {predicts}")
    return skip, out


def ddim_step(
    denoiser: Denoiser, xt: Tensor, t: Tensor, s: float | Tensor, cond: Any = None
) -> Tensor:
    """One step of DDIM from t to s, each sample at its own times.

    Args:
        denoiser: any Denoiser.
        xt: samples at t, shape (B, ...).
        t: times, shape (B,).
        s: the times where the step ends, shape (B,), or one for all.
        cond: passed to the denoiser.

    Returns:
        ``alpha(s) x0 + sigma(s) eps`` with the x0 and eps that the denoiser sees in x_t.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if shapes do not fit, or the prediction says nothing at t (:func:`skip_out`).
    """
    check_denoiser(denoiser)
    prediction = getattr(denoiser, denoiser.predicts)(xt, t, cond)
    skip, out = skip_out(denoiser.path, t, denoiser.predicts, s)
    return expand(skip, xt) * xt + expand(out, xt) * prediction


def consistency_function(
    denoiser: Denoiser, xt: Tensor, t: Tensor, cond: Any = None, *, t_min: float = T_MIN
) -> Tensor:
    """f(x, t): where the path through x_t ends, at ``t_min``, by one step of DDIM.

    For a consistency model this is the answer. For any other denoiser it is one long step, exact
    only where the path does not bend. f(x, t_min) = x holds for every denoiser.

    Args:
        denoiser: any Denoiser.
        xt: samples at t, shape (B, ...).
        t: times, shape (B,).
        cond: passed to the denoiser.
        t_min: the end of the path, in [0, 1).

    Returns:
        Points at ``t_min``, shape of ``xt``; as data they are off by the noise sigma(t_min).

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if ``t_min`` lies outside [0, 1), and as :func:`ddim_step`.
    """
    _check_end(t_min)
    return ddim_step(denoiser, xt, t, t_min, cond)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """``|a - b|^2``, shape (B,).

    Args:
        a: shape (B, ...).
        b: shape of ``a``.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    return (a - b).square().flatten(1).sum(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """``sqrt(|a - b|^2 + c^2) - c``: square for small errors, a plain norm for large ones.

    Song and Dhariwal, 2024, section 3.3. It has no kink, and outliers pull with a bounded force.

    Args:
        a: shape (B, ...).
        b: shape of ``a``.
        c: where it turns from one to the other; 0.00054 sqrt(d) for d numbers a sample.

    Returns:
        Shape (B,).

    Raises:
        ValueError: if the shapes differ, or ``c`` is not above 0.
    """
    square = squared_distance(a, b)
    c = 0.00054 * math.sqrt(a[0].numel()) if c is None else c
    if not c > 0:
        raise ValueError(f"c must be above 0; got {c}")
    return torch.sqrt(square + c**2) - c


def _euler_step(teacher: Denoiser, xt: Tensor, t: Tensor, s: Tensor, cond: Any) -> Tensor:
    return xt + expand(s - t, xt) * teacher.velocity(xt, t, cond)


def _heun_step(teacher: Denoiser, xt: Tensor, t: Tensor, s: Tensor, cond: Any) -> Tensor:
    first = teacher.velocity(xt, t, cond)
    second = teacher.velocity(xt + expand(s - t, xt) * first, s, cond)
    return xt + expand(s - t, xt) * (first + second) / 2


STEPS: dict[str, Callable[..., Tensor]] = {
    "ddim": ddim_step,
    "euler": _euler_step,
    "heun": _heun_step,
}
"""Steps of the teacher by name, ``step(teacher, xt, t, s, cond)``."""


@dataclass
class ConsistencyDistillation:
    """The loss of consistency distillation (Song et al., 2023, eq. 7); an objective for ``fit``.

    Two neighbours on the teacher's ODE path, x_t and, one of its steps lower, x_s, must be mapped
    to the same end: ``d(f(x_t, t), sg f(x_s, s))``. At t_min f is the identity, so what is true
    there spreads to t = 1, one segment of the grid after the other. The target comes from the
    student itself without gradient, not from an average of it (Song and Dhariwal, 2024, section
    3.2). A teacher with guidance (:class:`ClassifierFreeGuidance
    <course_lib.guidance.ClassifierFreeGuidance>`) is distilled with its guidance.

    An error of the network enters f with the factor c_out(t), small at small t, where all later
    times learn from. So both ends are divided by it: errors count in the units of the network. With
    a squared distance this is the weight 1 / c_out^2.

    Args:
        teacher: the denoiser whose paths are learned, on the student's path. It is not trained.
        solver: of the teacher's step, "heun", "ddim" or "euler".
        segments: number of steps of the grid; the course's grids are even in t.
        t_min: end of the grid, in [0, 1).
        weighted: measure errors in the units of the network; else in those of the data.
        distance: d, ``distance(a, b) -> (B,)``.
        grid: ``grid(path, segments, t_min=t_min)``, a falling grid from 1.

    Raises:
        TypeError: if ``teacher`` is a bare network.
        ValueError: if an option is out of range; and, when called, if there is no teacher, or it
            is on another path.
    """

    teacher: Denoiser | None = field(default=None, repr=False)
    solver: str = "heun"
    segments: int = 18
    t_min: float = T_MIN
    weighted: bool = True
    distance: Distance = squared_distance
    grid: Grid = uniform_grid
    taught_by: str = field(init=False)

    def __post_init__(self) -> None:
        self.taught_by = described(self.teacher)
        if self.solver not in STEPS:
            raise ValueError(f"solver must be one of {', '.join(STEPS)}; got {self.solver!r}")
        if self.segments < 1:
            raise ValueError(f"segments must be at least 1; got {self.segments}")
        _check_end(self.t_min)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss, a scalar; arguments as for ``denoising_loss``."""
        teacher, path = asked(self.teacher, x0), denoiser.path
        check_path(teacher, path)
        ts = self.grid(path, self.segments, t_min=self.t_min)
        u = uniform_times(len(x0), generator=generator).to(ts)
        n = (u * (len(ts) - 1)).ceil().long() - 1
        t, s = ts[n].to(x0), ts[n + 1].to(x0)
        xt = path.sample(x0, t, torch.empty_like(x0).normal_(generator=generator))
        with torch.no_grad():
            xs = STEPS[self.solver](teacher, xt, t, s, cond)
            target = ddim_step(denoiser, xs, s, self.t_min, cond)
        end = ddim_step(denoiser, xt, t, self.t_min, cond)
        if self.weighted:
            unit = expand(skip_out(path, t, denoiser.predicts, self.t_min)[1].abs(), xt)
            end, target = end / unit, target / unit
        return self.distance(end, target).mean()


@dataclass(frozen=True)
class ConsistencyTraining:
    """The loss of consistency training, without a teacher; an objective for ``fit``.

    In the place of a teacher's step, x_t and x_s are made of the same x0 and eps: their
    difference is right on average, with an error that vanishes with the length of the segment
    (Song et al., 2023, theorem 2). This is the improved recipe of Song and Dhariwal (2024):
    the target is the student itself without gradient; pseudo-Huber distance; segments that double
    in number while training goes on; noise levels mostly in the middle; errors counted by the
    length of the segment.

    Their time is sigma, on VE. On any path sigma / alpha takes its place in the distribution,
    ``log(sigma / alpha) ~ N(mean, std^2)``. In their weight ``1 / (sigma_t - sigma_s)`` we put
    sigma / (alpha + sigma), the time that has this noise level on Linear: for small noise on VE
    the same, and not 0 where alpha is, since there sampling begins.

    Args:
        segments: their number at first and at last.
        t_min: end of the grid, in [0, 1).
        mean: of log(sigma / alpha).
        std: its standard deviation.
        distance: ``distance(a, b) -> (B,)``.
        grid: ``grid(path, segments, t_min=t_min)``, a falling grid from 1.

    Raises:
        ValueError: if an option is out of range; and, when called, if ``progress`` is.
    """

    segments: tuple[int, int] = (10, 160)
    t_min: float = T_MIN
    mean: float = -1.1
    std: float = 2.0
    distance: Distance = pseudo_huber
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        if len(self.segments) != 2 or not 1 <= self.segments[0] <= self.segments[1]:
            raise ValueError(f"segments must be 1 <= first <= last; got {self.segments}")
        if not self.std > 0:
            raise ValueError(f"std must be above 0; got {self.std}")
        _check_end(self.t_min)

    def count(self, progress: float) -> int:
        """Number of segments when the part ``progress`` of the training, in [0, 1], is done.

        It doubles from the first number on, at even distances, up to the last (Song and Dhariwal,
        2024, section 3.4).

        Raises:
            ValueError: if ``progress`` lies outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1]; got {progress}")
        first, last = self.segments
        doublings = int(progress * (math.floor(math.log2(last / first)) + 1))
        return min(first * 2**doublings, last)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any = None,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """The loss, a scalar; arguments as for ``denoising_loss``, and how far training is."""
        check_denoiser(denoiser)
        path = denoiser.path
        ts = self.grid(path, self.count(progress), t_min=self.t_min)
        u = uniform_times(len(x0), generator=generator).to(ts)
        n = torch.searchsorted(self.chances(path, ts).cumsum(0)[:-1], u)
        t, s = ts[n].to(x0), ts[n + 1].to(x0)
        eps = torch.empty_like(x0).normal_(generator=generator)
        xt, xs = path.sample(x0, t, eps), path.sample(x0, s, eps)
        with torch.no_grad():
            target = ddim_step(denoiser, xs, s, self.t_min, cond)
        error = self.distance(ddim_step(denoiser, xt, t, self.t_min, cond), target)
        return (error / (_noise_share(path, t) - _noise_share(path, s))).mean()

    def chances(self, path: Path, ts: Tensor) -> Tensor:
        """How often each segment of the grid is drawn, shape (len(ts) - 1,), summing to 1.

        The normal distribution of log(sigma / alpha) = -lambda, cut off at both ends of the grid
        (Song and Dhariwal, 2024, section 3.5).
        """
        below = torch.special.ndtr((-path.log_snr_half(ts) - self.mean) / self.std)
        return -below.diff() / (below[0] - below[-1])


@torch.no_grad()
def consistency(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    t_min: float = T_MIN,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """A solver for consistency models: to the end of the path, and up again with fresh noise.

    Song et al., 2023, algorithm 1. Each step asks f once and, but for the last, adds the noise
    that leads from t_min to the next time of the grid. One step is one evaluation of f; more
    steps repair its errors.

    Args:
        denoiser: a consistency model.
        x: samples at ts[0], shape (B, ...).
        ts: falling times in [0, 1], shape (steps + 1,); the last one is where f ends, so it only
            counts the steps.
        t_min: the end of the paths that the model has learned, in [0, 1).
        cond: passed to the denoiser.
        generator: source of the noise.
        callback: called after each step as ``callback(i, s, x)``.

    Returns:
        Samples at ``t_min``, shape of ``x``.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if the grid does not fall, or a time between its ends is not above ``t_min``.
    """
    path, (end,) = denoiser.path, knots(denoiser.path, x, torch.tensor([t_min]))
    _check_end(t_min)
    for i, t, s in walk(path, x, ts):
        x = consistency_function(denoiser, x, t.times, cond, t_min=t_min)
        if i < len(ts) - 2:
            if s.exact <= t_min:
                raise ValueError(f"ts must lie above t_min = {t_min} between its ends; got {ts}")
            keep = s.alpha / end.alpha
            std = max(s.sigma**2 - (keep * end.sigma) ** 2, 0) ** 0.5
            x = keep * x + std * torch.empty_like(x).normal_(generator=generator)
        if callback:
            callback(i, s.time, x)
    return x


def multistep(
    denoiser: Denoiser,
    eps: Tensor,
    taus: Sequence[float] = (),
    cond: Any = None,
    *,
    generator: torch.Generator | None = None,
    t_min: float = T_MIN,
) -> Tensor:
    """Samples of a consistency model from standard noise, by way of the times ``taus``.

    f at t = 1; then for each tau noise up to tau and f again (:func:`consistency`).

    Args:
        denoiser: a consistency model.
        eps: standard normal noise, shape (B, ...).
        taus: falling times between 1 and ``t_min``; none for one step.
        cond: passed to the denoiser.
        generator: source of the noise.
        t_min: the end of the paths that the model has learned, in [0, 1).

    Returns:
        Samples at ``t_min``, shape of ``eps``.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if the times do not fall from 1 to ``t_min``.
    """
    check_denoiser(denoiser)
    times = [1.0, *taus, t_min]
    if not all(t > s for t, s in pairwise(times)):
        raise ValueError(f"taus must fall, between 1 and t_min = {t_min}; got {list(taus)}")
    ts = torch.tensor(times, dtype=torch.float64)
    x = denoiser.path.sigma(ts[:1].to(eps)) * eps
    return consistency(denoiser, x, ts, t_min=t_min, cond=cond, generator=generator)


def check_path(teacher: Denoiser, path: Path) -> None:
    """Refuse a teacher on another path than the student's.

    Raises:
        ValueError: if it is.
    """
    if repr(teacher.path) != repr(path):
        raise ValueError(f"teacher must be on the student's path {path}; got {teacher.path}")


def _check_end(t_min: float) -> None:
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie in [0, 1); got {t_min}")


def _noise_share(path: Path, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma), shape (B,): t on Linear, and there in [0, 1] on every path."""
    return path.sigma(t) / (path.alpha(t) + path.sigma(t))
