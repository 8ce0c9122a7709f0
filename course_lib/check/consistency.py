"""Checks of the exercises on consistency models and distillation.

Right answers come from known axes and standard deviations, from networks that are linear in their
weights, from derivatives by hand and from walks that are written out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.comparing import kind
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample

__all__ = ["CHECKERS"]

BATCHES = (*SHAPES[:2], (IMAGES, torch.float64, "two images, double precision"))


def _check_times(x: Tensor, t: Any) -> None:
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        got = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else kind(t)
        raise ValueError(f"the function wants a time for each sample, a tensor (B,); got {got}")


def _times(draw: Callable[..., Tensor], count: int, low: float = 0.2, high: float = 0.9) -> Tensor:
    """Times between two bounds, one for each sample, in double precision."""
    return low + (high - low) * draw(count).sigmoid()


# 1 consistency_gaussian

CLOUDS = (
    ((4, 2), torch.float32, "two coordinates, single precision"),
    ((3, 3), torch.float64, "as many samples as coordinates"),
    ((5, 1), torch.float64, "one coordinate"),
)


def _gaussian_cases(seed: int) -> Iterator[Case]:
    """Data with known axes and standard deviations along them, so nothing has to be taken apart."""
    draw = normal(seed)
    low = 0.02 + 0.01 * seed
    for shape, dtype, label in CLOUDS:
        t, x = _times(draw, shape[0]), draw(*shape)
        axes, stds = torch.linalg.qr(draw(shape[1], shape[1]))[0], _spreads(shape[1])
        line = (1 - t, t, 1 - low, low), f"the straight path; {label}"
        bow = (torch.cos(t), torch.sin(t), math.cos(low), math.sin(low)), f"a VP path; {label}"
        for factors, name in (line, bow):
            yield _gaussian_case(x, factors, axes, stds, name, dtype)
    axes, stds = torch.linalg.qr(draw(2, 2))[0], _spreads(2)
    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    noise, edge = (zero, one, 0.9, 0.1), (0.9 * one, 0.1 * one, 0.9, 0.1)
    yield _gaussian_case(draw(4, 2), noise, axes, stds, "pure noise, where alpha is 0")
    yield _gaussian_case(draw(4, 2), edge, axes, stds, "already at the smallest time")


def _spreads(count: int) -> Tensor:
    return 1.5 * 0.4 ** torch.arange(count).double()


def _gaussian_case(
    x: Tensor,
    factors: tuple[Tensor, Tensor, float, float],
    axes: Tensor,
    stds: Tensor,
    label: str,
    dtype: torch.dtype = torch.float64,
) -> Case:
    alpha, sigma, alpha_min, sigma_min = factors
    now = torch.hypot(alpha[:, None] * stds, sigma[:, None])
    right = x @ axes / now * torch.hypot(alpha_min * stds, stds.new_tensor(sigma_min)) @ axes.T
    cov = axes * stds**2 @ axes.T
    x, alpha, sigma, cov, right = (v.to(dtype) for v in (x, alpha, sigma, cov, right))
    return Case(label, (x, alpha, sigma, alpha_min, sigma_min, cov), right)


Axes = tuple[Tensor, Tensor]


def _as_if_diagonal(cov: Tensor) -> Axes:
    return cov.diagonal(), torch.eye(len(cov)).to(cov)


def _gaussian(
    scale: Callable[..., Tensor] = lambda now, then: (then / now) ** 0.5,
    variance: Callable[..., Any] = lambda a, s, v: a**2 * v + s**2,
    end: Callable[..., Any] | None = None,
    split: Callable[[Tensor], Axes] = lambda cov: tuple(torch.linalg.eigh(cov)),
    back: Callable[[Tensor, Tensor], Tensor] = lambda y, axes: y @ axes.T,
) -> Callable[..., Tensor]:
    """consistency_gaussian with another factor of the two variances, or another variance.

    `end` is the variance at the end of the way, if it is another function of (a, s, v), v being the
    variances of the data along their axes. `split` finds these two, `back` leaves the axes.
    """

    def wrong(x: Tensor, a: Tensor, s: Tensor, a_min: float, s_min: float, cov: Tensor) -> Tensor:
        v, axes = split(cov)
        now, then = variance(a[:, None], s[:, None], v), (end or variance)(a_min, s_min, v)
        return back(x @ axes * scale(now, then), axes)

    return wrong


def _by_posterior(
    weights: Callable[..., tuple[float, float]],
) -> Callable[..., Tensor]:
    """consistency_gaussian by one step with the best predictions of data and noise."""

    def wrong(x: Tensor, a: Tensor, s: Tensor, a_min: float, s_min: float, cov: Tensor) -> Tensor:
        (v, axes), (data, noise) = torch.linalg.eigh(cov), weights(a_min, s_min)
        a, s = a[:, None], s[:, None]
        return x @ axes * (data * a * v + noise * s) / (a**2 * v + s**2) @ axes.T

    return wrong


def _by_cholesky(
    x: Tensor, a: Tensor, s: Tensor, a_min: float, s_min: float, cov: Tensor
) -> Tensor:
    """The right distribution by another map: triangular roots, which turn the points."""
    one, a, s = torch.eye(len(cov)).to(cov), a[:, None, None], s[:, None, None]
    now = torch.linalg.cholesky(a**2 * cov + s**2 * one)
    then = torch.linalg.cholesky(a_min**2 * cov + s_min**2 * one)
    return torch.linalg.solve_triangular(now, x[:, :, None], upper=False)[..., 0] @ then.T


consistency_gaussian = Checker(
    chapter="consistency",
    name="consistency_gaussian",
    title="The consistency function of a Gaussian",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=_gaussian_cases,
    mistakes=(
        Mistake(
            "this is the ratio of the variances. How does a point move when the spread halves?",
            _gaussian(lambda now, then: then / now),
        ),
        Mistake(
            "the factor is upside down: this carries a point from the small time to t.",
            _gaussian(lambda now, then: (now / then) ** 0.5),
        ),
        Mistake(
            "this is the ratio of the variances, and upside down.",
            _gaussian(lambda now, then: now / then),
        ),
        Mistake(
            "each coordinate is stretched for itself, by its own variance. The correlation has no "
            "say here.",
            _gaussian(split=_as_if_diagonal),
        ),
        Mistake(
            "all directions are stretched alike. The data spread more in some than in others.",
            _gaussian(
                split=lambda cov: (_as_if_diagonal(cov)[0].mean(), _as_if_diagonal(cov)[1]),
            ),
        ),
        Mistake(
            "this carries the distribution at t to the one at the smallest time, but so do many "
            "maps. This one turns the points. Does the flow?",
            _by_cholesky,
        ),
        Mistake(
            "the stretched point is left in the coordinates of the axes. Turn it back.",
            _gaussian(back=lambda y, axes: y),
        ),
        Mistake(
            "the coordinates are stretched by the variances along the axes, but were never turned "
            "into them.",
            _gaussian(split=lambda cov: (torch.linalg.eigvalsh(cov), _as_if_diagonal(cov)[1])),
        ),
        Mistake(
            "the axes are taken from the rows of their matrix. They are its columns.",
            _gaussian(
                split=lambda cov: (torch.linalg.eigh(cov)[0], torch.linalg.eigh(cov)[1].T),
            ),
        ),
        Mistake(
            "the variances along the axes are squared, as if they were standard deviations.",
            _gaussian(variance=lambda a, s, v: a**2 * v**2 + s**2),
        ),
        Mistake(
            "standard deviations are added. Of independent parts the variances add.",
            _gaussian(lambda now, then: then / now, lambda a, s, v: a * v**0.5 + s),
        ),
        Mistake(
            "this is the mean of the data, given x: one guess at t, not where the path ends.",
            _by_posterior(lambda a_min, s_min: (1.0, 0.0)),
        ),
        Mistake(
            "this is one step of DDIM with the best prediction. The path bends on the way, and the "
            "step does not.",
            _by_posterior(lambda a_min, s_min: (a_min, s_min)),
        ),
        Mistake(
            "this goes all the way to the data. The function stops at the smallest time, where a "
            "little noise is left.",
            _gaussian(end=lambda a, s, v: v),
        ),
        Mistake(
            "at the smallest time the data are shrunk too, and the noise is not yet gone: of the "
            "two you count the data alone.",
            _gaussian(end=lambda a, s, v: a**2 * v),
        ),
        Mistake(
            "the data have a covariance of their own; this is right if it is the identity.",
            _gaussian(variance=lambda a, s, v: (a**2 + s**2) * v**0),
        ),
        Mistake(
            "only the noise is counted, as if all data were 0.",
            _gaussian(variance=lambda a, s, v: s**2 * v**0),
        ),
        Mistake(
            "only the data are counted. At t a good part of x is noise.",
            _gaussian(variance=lambda a, s, v: a**2 * v),
        ),
        Mistake(
            "alpha multiplies the sample, so its square multiplies the variance.",
            _gaussian(variance=lambda a, s, v: a * v + s**2),
        ),
        Mistake(
            "the factors of data and noise are exchanged.",
            _gaussian(variance=lambda a, s, v: s**2 * v + a**2),
        ),
        Mistake(
            "the state itself comes back. That is right at the smallest time only.",
            lambda x, a, s, a_min, s_min, cov: x,
        ),
    ),
)

# 2 ddim_boundary


def _boundary_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    low = 0.05 + 0.01 * seed
    for shape, dtype, label in SHAPES:
        t = _times(draw, shape[0])
        eps, x0 = draw(*shape).to(dtype), draw(*shape).to(dtype)
        for name, alpha, sigma in (("VP", torch.cos, torch.sin), ("VE", torch.ones_like, _same)):
            a, s = (per_sample(f(t), eps) for f in (alpha, sigma))
            a_min, s_min = (float(f(torch.tensor(low).double())) for f in (alpha, sigma))
            args = (a * x0 + s * eps, eps, alpha(t).to(dtype), sigma(t).to(dtype), a_min, s_min)
            yield Case(f"a {name} path; {label}", args, a_min * x0 + s_min * eps)
    x, eps, one = draw(4, 2), draw(4, 2), torch.ones(4).double()
    edge = (x, eps, one * math.cos(low), one * math.sin(low), math.cos(low), math.sin(low))
    yield Case("already at the smallest time", edge, x.clone())


def _same(t: Tensor) -> Tensor:
    return t


def _bounded(
    result: Callable[..., Tensor] = lambda x, x0, eps, s, am, sm: am * x0 + sm * eps,
    data: Callable[..., Tensor] = lambda x, eps, a, s: (x - s * eps) / a,
) -> Callable[..., Tensor]:
    """ddim_boundary with another sum at the end, or another prediction of the data."""

    def wrong(x: Tensor, eps: Tensor, a: Tensor, s: Tensor, am: float, sm: float) -> Tensor:
        a, s = per_sample(a, x), per_sample(s, x)
        return result(x, data(x, eps, a, s), eps, s, am, sm)

    return wrong


ddim_boundary = Checker(
    chapter="consistency",
    name="ddim_boundary",
    title="Build in the boundary condition",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=_boundary_cases,
    mistakes=(
        Mistake(
            "this is the predicted data. At the smallest time it is not x, whatever the network "
            "says: a little noise must stay.",
            _bounded(lambda x, x0, eps, s, am, sm: x0),
        ),
        Mistake(
            "the predicted data are shrunk, but the noise that belongs to the smallest time is "
            "missing.",
            _bounded(lambda x, x0, eps, s, am, sm: am * x0),
        ),
        Mistake(
            "the predicted data are not shrunk: at the smallest time they have a factor too.",
            _bounded(lambda x, x0, eps, s, am, sm: x0 + sm * eps),
        ),
        Mistake(
            "all the noise of time t is put back. Only the little of the smallest time belongs "
            "there.",
            _bounded(lambda x, x0, eps, s, am, sm: am * x0 + s * eps),
        ),
        Mistake(
            "the two factors are exchanged: near the data the data weigh most.",
            _bounded(lambda x, x0, eps, s, am, sm: sm * x0 + am * eps),
        ),
        Mistake(
            "the noise is subtracted at the end. It was removed when the data were predicted, and "
            "some of it comes back.",
            _bounded(lambda x, x0, eps, s, am, sm: am * x0 - sm * eps),
        ),
        Mistake(
            "this is right where alpha is always 1. On other paths x must be rescaled as well.",
            _bounded(lambda x, x0, eps, s, am, sm: x - (s - sm) * eps),
        ),
        Mistake(
            "this is a step with the velocity of the straight path. On this path the data and "
            "the noise have other factors.",
            _bounded(lambda x, x0, eps, s, am, sm: x - (s - sm) * (eps - x0)),
        ),
        Mistake(
            "the noise is taken away, but the data are still shrunk by the alpha of time t.",
            _bounded(data=lambda x, eps, a, s: x - s * eps),
        ),
        Mistake(
            "the division by alpha hits the sample alone. It belongs to the noise too.",
            _bounded(data=lambda x, eps, a, s: x / a - s * eps),
        ),
        Mistake(
            "a sign is wrong: the data are what is left when noise is taken away.",
            _bounded(data=lambda x, eps, a, s: (x + s * eps) / a),
        ),
        Mistake(
            "the noise is taken away with the square of its factor.",
            _bounded(data=lambda x, eps, a, s: (x - s**2 * eps) / a),
        ),
        Mistake(
            "the network's prediction is taken for the data. It is the noise.",
            _bounded(
                lambda x, x0, eps, s, am, sm: am * eps + sm * x0,
                lambda x, eps, a, s: (x - a * eps) / s,
            ),
        ),
        Mistake(
            "state and prediction are exchanged.",
            lambda x, eps, a, s, am, sm: _bounded()(eps, x, a, s, am, sm),
        ),
        Mistake(
            "the noise is taken away without its factor.",
            _bounded(data=lambda x, eps, a, s: (x - eps) / a),
        ),
        Mistake(
            "the state at t is only rescaled: its noise was not taken away.",
            _bounded(data=lambda x, eps, a, s: x / a),
        ),
        Mistake(
            "the state stands in the place of the predicted data.",
            _bounded(data=lambda x, eps, a, s: x),
        ),
        Mistake(
            "the state itself comes back. That is right at the smallest time only.",
            _bounded(lambda x, x0, eps, s, am, sm: x),
        ),
        Mistake(
            "the factors of shape (B,) met the last axis. They belong to the first.",
            lambda x, eps, a, s, am, sm: am * (x - s * eps) / a + sm * eps,
        ),
    ),
)

# 3 consistency_loss


def _consistency_function(weights: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Linear in its weights, so that its gradient is known; the identity at t = 0."""
    _check_times(x, t)
    return x + per_sample(t, x) * (weights[0] * torch.tanh(x) + weights[1])


def _teacher_step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    _check_times(x, t)
    _check_times(x, s)
    return x - per_sample(t - s, x) * (0.5 + torch.sin(x) + per_sample(t, x) ** 2)


def _loss_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        x0, eps, weights = (draw(*size).to(dtype) for size in (shape, shape, (2,)))
        t = _times(draw, shape[0], 0.4).to(dtype)
        s = t - 0.1 - 0.1 * draw(shape[0]).sigmoid().to(dtype)
        x = per_sample(1 - t, x0) * x0 + per_sample(t, x0) * eps
        target = _consistency_function(weights, _teacher_step(x, t, s), s)
        error = _consistency_function(weights, x, t) - target
        slopes = [per_sample(t, x) * torch.tanh(x), per_sample(t, x).expand_as(x)]
        gradient = torch.stack([(2 * error * slope).mean() for slope in slopes])
        args = (_consistency_function, weights, _teacher_step, x0, eps, t, s)
        yield Case(label, args, (error.square().mean(), gradient))


def _line(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    return per_sample(1 - t, x0) * x0 + per_sample(t, x0) * eps


def _held(
    student: Callable[..., Tensor] = lambda f, x, t, y, s: f(x, t),
    target: Callable[..., Tensor] = lambda f, x, t, y, s: f(y, s),
    hold: tuple[bool, bool] = (False, True),
    total: Callable[[Tensor], Tensor] = lambda e: e.square().mean(),
    lower: Callable[..., Tensor] = lambda teacher, x, t, s, x0, eps: teacher(x, t, s),
    upper: Callable[..., Tensor] = lambda x0, eps, t, s: _line(x0, eps, t),
) -> Callable[..., tuple[Tensor, Tensor]]:
    """consistency_loss with another student or target, given x at t and y at s.

    `hold` says which of the two has no gradient. `lower` and `upper` make the states y and x.
    """

    def wrong(
        f: Any, weights: Tensor, teacher: Any, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = weights.detach().clone().requires_grad_()
        x = upper(x0, eps, t, s)
        y = lower(teacher, x, t, s, x0, eps)
        both = [side(lambda a, b: f(weights, a, b), x, t, y, s) for side in (student, target)]
        both = [out.detach() if held else out for out, held in zip(both, hold, strict=True)]
        loss = total(both[0] - both[1])
        return loss.detach(), torch.autograd.grad(loss, weights)[0]

    return wrong


consistency_loss = Checker(
    chapter="consistency",
    name="consistency_loss",
    title="Spot the bug: a target that runs away",
    kind="bug",
    difficulty=2,
    minutes=20,
    cases=_loss_cases,
    mistakes=(
        Mistake(
            "this is still the code with the bugs.",
            _held(target=lambda f, x, t, y, s: f(y, t), hold=(False, False)),
        ),
        Mistake(
            "one of two bugs is left, and only the gradient shows it: the target moves with the "
            "weights.",
            _held(hold=(False, False)),
        ),
        Mistake(
            "one of two bugs is left: the target asks for the state after the step, but tells the "
            "network another time.",
            _held(target=lambda f, x, t, y, s: f(y, t)),
        ),
        Mistake(
            "the wrong side is held fixed, or the two sides are exchanged: the noisier state is to "
            "learn from the cleaner one.",
            _held(hold=(True, False)),
        ),
        Mistake(
            "both sides are held fixed, so there is no gradient at all.",
            _held(hold=(True, True)),
        ),
        Mistake(
            "the time of the target is right now, but the student at t is told the time of the "
            "target.",
            _held(student=lambda f, x, t, y, s: f(x, s)),
        ),
        Mistake(
            "the times of student and target are exchanged.",
            _held(lambda f, x, t, y, s: f(x, s), lambda f, x, t, y, s: f(y, t)),
        ),
        Mistake(
            "the teacher's step is lost: the target asks for the state before it.",
            _held(target=lambda f, x, t, y, s: f(x, s)),
        ),
        Mistake(
            "the target has no step of the teacher, but a state with the same noise. That is "
            "consistency training; here a teacher is given.",
            _held(lower=lambda teacher, x, t, s, x0, eps: _line(x0, eps, s)),
        ),
        Mistake(
            "the student is compared with the state after the teacher's step. Where does the path "
            "end that leads through it? The target network says.",
            _held(target=lambda f, x, t, y, s: y),
        ),
        Mistake(
            "the student is compared with the data. This trains a denoiser, whose answer is a mean "
            "of many data.",
            lambda f, w, teacher, x0, eps, t, s: _held(
                target=lambda g, x, u, y, r: x0,
            )(f, w, teacher, x0, eps, t, s),
        ),
        Mistake(
            "time is turned round: at t = 1 the state is pure noise.",
            _held(upper=lambda x0, eps, t, s: _line(x0, eps, 1 - t)),
        ),
        Mistake(
            "the first state is made at the time s. The teacher's step begins at t.",
            _held(upper=lambda x0, eps, t, s: _line(x0, eps, s)),
        ),
        Mistake(
            "the target asks at the data, with the time s. The teacher's step leads to another "
            "state, which still has noise.",
            _held(lower=lambda teacher, x, t, s, x0, eps: x0),
        ),
        Mistake(
            "the errors are counted in the units of the network, as the library does. Here all "
            "of them count alike.",
            _held(
                lambda f, x, t, y, s: f(x, t) / per_sample(t, x),
                lambda f, x, t, y, s: f(y, s) / per_sample(t, y),
            ),
        ),
        Mistake(
            "the teacher steps back from s to t.",
            _held(lower=lambda teacher, x, t, s, x0, eps: teacher(x, s, t)),
        ),
        Mistake(
            "this is a sum. Take the mean over batch and coordinates.",
            _held(total=lambda e: e.square().sum()),
        ),
        Mistake(
            "the coordinates are summed. Take the mean over batch and coordinates.",
            _held(total=lambda e: e.square().sum() / len(e)),
        ),
        Mistake(
            "there is a half in front of the squares.",
            _held(total=lambda e: e.square().mean() / 2),
        ),
        Mistake(
            "the errors are not squared.",
            _held(total=lambda e: e.abs().mean()),
        ),
        Mistake(
            "a root is taken at the end: the loss is the mean of the squares itself.",
            _held(total=lambda e: e.square().mean().sqrt()),
        ),
    ),
)

# 4 pseudo_huber

HUBER = 0.00054


def _huber_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in (*BATCHES, ((6, 2), torch.float64, "points of the plane")):
        for gap, name in ((1.0, "far apart"), (5e-4, "as near as the constant")):
            a = draw(*shape).to(dtype)
            b = a + gap * draw(*shape).to(dtype)
            constant = HUBER * a[0].numel() ** 0.5
            sizes = [(p - q).double().norm().item() for p, q in zip(a, b, strict=True)]
            right = torch.tensor([math.hypot(size, constant) - constant for size in sizes])
            if dtype == torch.float64:
                right = torch.tensor(
                    [math.hypot(size, constant) - constant for size in sizes], dtype=dtype
                )
            yield Case(f"{name}; {label}", (a, b), right)
    a = draw(3, 4)
    yield Case("nothing differs", (a, a.clone()), torch.zeros(3).double())


def _huber(
    result: Callable[[Tensor, float], Tensor] = lambda q, c: (q + c**2).sqrt() - c,
    square: Callable[[Tensor], Tensor] = lambda e: e.flatten(1).square().sum(1),
    constant: Callable[[Tensor], float] = lambda e: HUBER * e[0].numel() ** 0.5,
    last: Callable[[Tensor], Tensor] = lambda d: d,
) -> Callable[[Tensor, Tensor], Tensor]:
    """pseudo_huber with another formula of |a - b|^2 and c, or another of these two."""
    return lambda a, b: last(result(square(a - b), constant(a - b)))


pseudo_huber = Checker(
    chapter="consistency",
    name="pseudo_huber",
    title="A distance that forgives outliers",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=_huber_cases,
    mistakes=(
        Mistake(
            "equal samples must have distance 0: subtract something at the end.",
            _huber(lambda q, c: (q + c**2).sqrt()),
        ),
        Mistake(
            "under the root the constant is not squared.",
            _huber(lambda q, c: (q + c).sqrt() - c),
        ),
        Mistake(
            "the square of the constant is subtracted at the end. Without its square equal samples "
            "have distance 0.",
            _huber(lambda q, c: (q + c**2).sqrt() - c**2),
        ),
        Mistake(
            "this is the plain distance: the constant is missing.",
            _huber(lambda q, c: q.sqrt()),
        ),
        Mistake(
            "this is the squared distance: neither root nor constant.",
            _huber(lambda q, c: q),
        ),
        Mistake(
            "the root is missing.",
            _huber(lambda q, c: q + c**2 - c),
        ),
        Mistake(
            "under the root stands the distance. Its square belongs there.",
            _huber(lambda q, c: (q.sqrt() + c**2).sqrt() - c),
        ),
        Mistake(
            "the formula is applied to each coordinate, and then summed. The root is taken once a "
            "sample.",
            lambda a, b: (
                (((a - b).square() + (c := HUBER * a[0].numel() ** 0.5) ** 2).sqrt() - c)
                .flatten(1)
                .sum(1)
            ),
        ),
        Mistake(
            "the formula is applied to each coordinate, and then averaged. The root is taken once "
            "a sample, of a sum.",
            lambda a, b: (
                (((a - b).square() + (c := HUBER * a[0].numel() ** 0.5) ** 2).sqrt() - c)
                .flatten(1)
                .mean(1)
            ),
        ),
        Mistake(
            "the squares are averaged over the coordinates. The norm sums them.",
            _huber(square=lambda e: e.flatten(1).square().mean(1)),
        ),
        Mistake(
            "the absolute errors are summed, not their squares.",
            _huber(square=lambda e: e.flatten(1).abs().sum(1)),
        ),
        Mistake(
            "only the last axis is summed. A sample may have several axes.",
            _huber(square=lambda e: e.square().sum(-1)),
        ),
        Mistake(
            "only the second axis is summed. A sample may have several axes.",
            _huber(square=lambda e: e.square().sum(1)),
        ),
        Mistake(
            "nothing is summed: this has one number for each coordinate, not for each sample.",
            _huber(square=lambda e: e.square()),
        ),
        Mistake(
            "the constant grows with the root of the number of coordinates, not with the number.",
            _huber(constant=lambda e: HUBER * e[0].numel()),
        ),
        Mistake(
            "the constant must grow with the number of coordinates.",
            _huber(constant=lambda e: HUBER),
        ),
        Mistake(
            "the constant counts the coordinates of one sample, not those of the whole batch.",
            _huber(constant=lambda e: HUBER * e.numel() ** 0.5),
        ),
        Mistake(
            "the constant counts the last axis alone. An image has more coordinates.",
            _huber(constant=lambda e: HUBER * e.shape[-1] ** 0.5),
        ),
        Mistake(
            "the constant counts the second axis alone. An image has more coordinates.",
            _huber(constant=lambda e: HUBER * e.shape[1] ** 0.5),
        ),
        Mistake(
            "the constant counts the samples. Count the coordinates of one.",
            _huber(constant=lambda e: HUBER * len(e) ** 0.5),
        ),
        Mistake(
            "the mean over the batch is taken. Each sample has its own distance.",
            _huber(last=lambda d: d.mean()),
        ),
        Mistake(
            "one distance for the whole batch. Each sample has its own.",
            _huber(square=lambda e: e.square().sum()),
        ),
    ),
)

# 5 training_pair


def _pair_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        x0, eps = draw(*shape).to(dtype), draw(*shape).to(dtype)
        ts = torch.cat([torch.zeros(1).double() + 0.01, draw(6).exp()]).cumsum(0)
        ts = ts / ts[-1]
        n = (draw(shape[0]).abs() * 100).long() % 6
        t, s = ts[n + 1], ts[n]
        states = [
            torch.stack([(1 - u) * a + u * b for u, a, b in zip(us, x0, eps, strict=True)]).to(x0)
            for us in (t, s)
        ]
        yield Case(label, (x0, eps, n, ts.to(dtype)), (*states, (1 / (t - s)).to(x0)))


Triple = tuple[Tensor, Tensor, Tensor]


def _twice(
    upper: Callable[..., Tensor] = lambda x0, eps, t, s: _line(x0, eps, t),
    lower: Callable[..., Tensor] = lambda x0, eps, t, s: _line(x0, eps, s),
    weigh: Callable[[Tensor, Tensor], Tensor] = lambda t, s: 1 / (t - s),
    pick: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda ts, n: (ts[n + 1], ts[n]),
    last: Callable[[Tensor, Tensor, Tensor], Triple] = lambda upper, lower, w: (upper, lower, w),
) -> Callable[..., Triple]:
    """training_pair with other states, another weight, other times of the grid or a last change."""

    def wrong(x0: Tensor, eps: Tensor, n: Tensor, ts: Tensor) -> Triple:
        t, s = pick(ts, n)
        return last(upper(x0, eps, t, s), lower(x0, eps, t, s), weigh(t, s))

    return wrong


training_pair = Checker(
    chapter="consistency",
    name="training_pair",
    title="Two neighbours without a teacher",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "the two states have different noise. Then they lie on different paths, and nothing "
            "ties their ends together.",
            _twice(lower=lambda x0, eps, t, s: _line(x0, eps.flip(0), s)),
        ),
        Mistake(
            "the two states belong to different data.",
            _twice(lower=lambda x0, eps, t, s: _line(x0.flip(0), eps, s)),
        ),
        Mistake(
            "the later time comes first in the result, and its state is the noisier one.",
            _twice(last=lambda upper, lower, w: (lower, upper, w)),
        ),
        Mistake(
            "time is turned round: at t = 1 the state is pure noise.",
            _twice(
                lambda x0, eps, t, s: _line(eps, x0, t),
                lambda x0, eps, t, s: _line(eps, x0, s),
            ),
        ),
        Mistake(
            "between the two states the noise changes, but the data keep the factor of time t.",
            _twice(lower=lambda x0, eps, t, s: _line(x0, eps, t) - per_sample(t - s, x0) * eps),
        ),
        Mistake(
            "the data have the factor 1, at every time. On the straight path it falls.",
            _twice(
                lambda x0, eps, t, s: x0 + per_sample(t, x0) * eps,
                lambda x0, eps, t, s: x0 + per_sample(s, x0) * eps,
            ),
        ),
        Mistake(
            "both states are at the same time.",
            _twice(lower=lambda x0, eps, t, s: _line(x0, eps, t)),
        ),
        Mistake(
            "noise is added to the state at s, as in a chain. Its share must be such that both "
            "states have one and the same noise.",
            _twice(
                lambda x0, eps, t, s: _line(x0, eps, s) + per_sample(t - s, x0) * eps,
            ),
        ),
        Mistake(
            "the weight is the distance of the times. It is one over it.",
            _twice(weigh=lambda t, s: t - s),
        ),
        Mistake(
            "the weight has the wrong sign: which of the two times is larger?",
            _twice(weigh=lambda t, s: 1 / (s - t)),
        ),
        Mistake(
            "the weight is one over the square of the distance.",
            _twice(weigh=lambda t, s: 1 / (t - s) ** 2),
        ),
        Mistake(
            "the weight is one over the time, not over the distance of the two times.",
            _twice(weigh=lambda t, s: 1 / t),
        ),
        Mistake(
            "the weight is 1 everywhere.",
            _twice(weigh=lambda t, s: torch.ones_like(t)),
        ),
        Mistake(
            "the weights are divided by their mean. Leave them as they are.",
            _twice(weigh=lambda t, s: 1 / (t - s) / (1 / (t - s)).mean()),
        ),
        Mistake(
            "the weight has more than one axis. It is one number for each sample.",
            _twice(last=lambda upper, lower, w: (upper, lower, per_sample(w, upper))),
        ),
        Mistake(
            "the two times are the entries n and n - 1 of the grid.",
            _twice(pick=lambda ts, n: (ts[n], ts[n - 1])),
        ),
        Mistake(
            "the cleaner state is at the start of the grid. It is the neighbour of the other.",
            _twice(pick=lambda ts, n: (ts[n + 1], ts[0].expand_as(ts[n]))),
        ),
        Mistake(
            "the times are counted as if the grid were even. It need not be: its times are given.",
            _twice(pick=lambda ts, n: ((n + 1) / (len(ts) - 1), n / (len(ts) - 1))),
        ),
        Mistake(
            "all samples take the interval of the first. Each has its own.",
            _twice(
                pick=lambda ts, n: (ts[n[0] + 1].expand(len(n)), ts[n[0]].expand(len(n))),
            ),
        ),
        Mistake(
            "the times of shape (B,) met the last axis. They belong to the first.",
            _twice(
                lambda x0, eps, t, s: (1 - t) * x0 + t * eps,
                lambda x0, eps, t, s: (1 - s) * x0 + s * eps,
            ),
        ),
    ),
)

# 6 doubling_curriculum


def _curriculum_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for steps, first, last in (
        (1000 + seed, 10, 160),
        (400_000, 10, 1280),
        (700, 2, 6),
        (90, 5, 5),
    ):
        length = int(steps / (math.log2(last / first) + 1))
        some = (draw(12).sigmoid() * steps).long()
        edges = [i * length + j for i in (1, 2) for j in (-1, 0, 1) if i * length + j < steps]
        k = torch.cat([torch.tensor([0, *edges, steps - 1]), some])
        answer = torch.tensor([min(first * 2 ** (int(i) // length), last) + 1 for i in k])
        yield Case(
            f"from {first} to {last} segments in {steps} steps", (k, steps, first, last), answer
        )


def _doubled(
    length: Callable[[int, float], float] = lambda steps, ratio: int(
        steps / (math.log2(ratio) + 1)
    ),
    grow: Callable[[Tensor, float, int], Tensor] = lambda k, length, first: (
        first * 2.0 ** (k / length).floor()
    ),
    end: Callable[[Tensor, int], Tensor] = lambda n, last: n.clamp(max=last) + 1,
) -> Callable[..., Tensor]:
    """doubling_curriculum with another length of a stage, another growth or another end."""

    def wrong(k: Tensor, steps: int, first: int, last: int) -> Tensor:
        n = grow(k.double(), length(steps, last / first), first)
        return end(n, last).floor().to(k.dtype)

    return wrong


doubling_curriculum = Checker(
    chapter="consistency",
    name="doubling_curriculum",
    title="More segments while training goes on",
    kind="implementation",
    difficulty=2,
    minutes=12,
    cases=_curriculum_cases,
    mistakes=(
        Mistake(
            "this counts segments. The times of the grid are asked for, one more.",
            _doubled(end=lambda n, last: n.clamp(max=last)),
        ),
        Mistake(
            "the bound is taken after the 1 is added, so the last stage has one time too few.",
            _doubled(end=lambda n, last: (n + 1).clamp(max=last)),
        ),
        Mistake(
            "nothing stops the growth: when the steps are no multiple of a stage, the last few "
            "double once more.",
            _doubled(end=lambda n, last: n + 1),
        ),
        Mistake(
            "the number grows a little in every step. It is constant in a stage, and doubles then.",
            _doubled(grow=lambda k, length, first: first * 2.0 ** (k / length)),
        ),
        Mistake(
            "the number grows by the same amount from stage to stage. It doubles.",
            _doubled(grow=lambda k, length, first: first * (1 + (k / length).floor())),
        ),
        Mistake(
            "the first stage is one doubling too far.",
            _doubled(grow=lambda k, length, first: first * 2.0 ** ((k / length).floor() + 1)),
        ),
        Mistake(
            "there are as many stages as doublings here. The stage before the first doubling is "
            "missing.",
            _doubled(lambda steps, ratio: int(steps / math.log2(ratio))),
        ),
        Mistake(
            "the 1 is added to the length of a stage. It belongs to the number of stages.",
            _doubled(lambda steps, ratio: int(steps / math.log2(ratio) + 1)),
        ),
        Mistake(
            "two is multiplied by the number of the stage. It is raised to it.",
            _doubled(grow=lambda k, length, first: first * 2.0 * (k / length).floor()),
        ),
        Mistake(
            "the smaller of two is asked of single numbers here, but there is one for each step.",
            lambda k, steps, first, last: (
                min(_doubled(end=lambda n, last: n)(k, steps, first, last), last) + 1
            ),
        ),
        Mistake(
            "the number of stages comes from the natural logarithm. Doublings are counted by the "
            "one of base 2.",
            _doubled(lambda steps, ratio: int(steps / (math.log(ratio) + 1))),
        ),
        Mistake(
            "the number of stages comes from the logarithm of base 10. Doublings are counted by "
            "the one of base 2.",
            _doubled(lambda steps, ratio: int(steps / (math.log10(ratio) + 1))),
        ),
        Mistake(
            "the length of a stage is not rounded down to whole steps.",
            _doubled(lambda steps, ratio: steps / (math.log2(ratio) + 1)),
        ),
        Mistake(
            "the length of a stage is rounded up.",
            _doubled(lambda steps, ratio: math.ceil(steps / (math.log2(ratio) + 1))),
        ),
        Mistake(
            "the steps are divided by the ratio of the two numbers. How many doublings lie between "
            "them?",
            _doubled(lambda steps, ratio: int(steps / (ratio + 1))),
        ),
        Mistake(
            "the number of stages is rounded down before the division; only the result is.",
            _doubled(lambda steps, ratio: int(steps / (math.floor(math.log2(ratio)) + 1))),
        ),
        Mistake(
            "the number of stages is rounded up before the division; only the result is rounded, "
            "and down.",
            _doubled(lambda steps, ratio: int(steps / (math.ceil(math.log2(ratio)) + 1))),
        ),
        Mistake(
            "the number falls while training goes on. It begins with few segments.",
            lambda k, steps, first, last: _doubled()(steps - 1 - k, steps, first, last),
        ),
        Mistake(
            "steps are counted from 0 here, and you count from 1.",
            lambda k, steps, first, last: _doubled()(k + 1, steps, first, last),
        ),
        Mistake(
            "each doubling comes one step too late: the first step of all has the number 0.",
            _doubled(
                grow=lambda k, length, first: first * (2.0 ** ((k - 1) / length).floor()) * (k > 0),
            ),
        ),
    ),
)

# 7 multistep


def _multistep_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    low = 0.05 + 0.01 * seed
    for shape, dtype, taus, label in (
        (*SHAPES[0][:2], (0.8, 0.5, 0.2), "three more calls; images, single precision"),
        (*SHAPES[1][:2], (0.6,), "one more call; as many samples as coordinates"),
        ((5, 2), torch.float64, (), "no more calls"),
        (IMAGES, torch.float64, (0.7, 0.3), "two more calls; images, double precision"),
    ):
        eps, z = draw(*shape).to(dtype), draw(len(taus), *shape).to(dtype)
        x = _pull(eps, eps.new_ones(len(eps)))
        for tau, fresh in zip(taus, z, strict=True):
            keep = (1 - tau) / (1 - low)
            x = keep * x + math.sqrt(tau**2 - (keep * low) ** 2) * fresh
            x = _pull(x, x.new_full((len(x),), tau))
        yield Case(label, (_pull, eps, torch.tensor(taus, dtype=dtype), z, low), x)


def _pull(x: Tensor, t: Tensor) -> Tensor:
    """Something that depends on both arguments, and treats no two times alike."""
    _check_times(x, t)
    return torch.tanh(x) * per_sample(1 / (1 + t), x) + 0.3 * per_sample(t, x)


def _keep(tau: Tensor, low: float) -> Tensor:
    return (1 - tau) / (1 - low)


def _fresh(tau: Tensor, low: float) -> Tensor:
    return (tau**2 - (_keep(tau, low) * low) ** 2).sqrt()


def _calls(
    shrink: Callable[[Tensor, float], Any] = _keep,
    size: Callable[[Tensor, float], Any] = _fresh,
    order: Callable[[Tensor], Tensor] = lambda taus: taus,
    noise: Callable[[Tensor, Tensor, int], Tensor] = lambda z, eps, i: z[i],
    ask: Callable[[Tensor], Tensor] = lambda tau: tau,
    first: bool = True,
    late: bool = False,
) -> Callable[..., Tensor]:
    """multistep with other factors, another order of times, or other noise.

    `ask` changes the time that the function is told. Without `first` the call at t = 1 is missing;
    `late` adds the noise after each call, not before it.
    """

    def wrong(f: Any, eps: Tensor, taus: Tensor, z: Tensor, low: float) -> Tensor:
        x = f(eps, eps.new_ones(len(eps))) if first else eps
        for i, tau in enumerate(order(taus)):

            def renoise(x: Tensor, i: int = i, tau: Tensor = tau) -> Tensor:
                return shrink(tau, low) * x + size(tau, low) * noise(z, eps, i)

            t = ask(tau).expand(len(x)).to(x)
            x = renoise(f(x, t)) if late else f(renoise(x), t)
        return x

    return wrong


multistep = Checker(
    chapter="consistency",
    name="multistep",
    title="Spot the bug: more than one step",
    kind="bug",
    difficulty=2,
    minutes=20,
    cases=_multistep_cases,
    mistakes=(
        Mistake(
            "this is still the code with the bugs.",
            _calls(lambda tau, low: 1, lambda tau, low: 0.1, lambda taus: taus.flip(0), late=True),
        ),
        Mistake(
            "the times fall now. But the noise has a fixed size, and comes when the function has "
            "been asked.",
            _calls(lambda tau, low: 1, lambda tau, low: 0.1, late=True),
        ),
        Mistake(
            "the noise comes before the call now. But the times grow, and the noise does not fit "
            "them.",
            _calls(lambda tau, low: 1, lambda tau, low: 0.1, lambda taus: taus.flip(0)),
        ),
        Mistake(
            "times and order are right. But the noise has the same small size whatever the time, "
            "and x is not shrunk, so the function gets states that it never saw.",
            _calls(lambda tau, low: 1, lambda tau, low: 0.1),
        ),
        Mistake(
            "the noise fits the time, but the times grow: what the last call leaves is the "
            "coarsest.",
            _calls(order=lambda taus: taus.flip(0)),
        ),
        Mistake(
            "each time has its own noise, of the right size. But the times grow: what the last "
            "call leaves is the coarsest.",
            _calls(order=lambda taus: taus.flip(0), noise=lambda z, eps, i: z[-1 - i]),
        ),
        Mistake(
            "noise is added after the last call, and stays in the sample. It comes before each "
            "call.",
            _calls(late=True),
        ),
        Mistake(
            "noise is added after the last call, and the times grow.",
            _calls(order=lambda taus: taus.flip(0), late=True),
        ),
        Mistake(
            "the noise has the right size, but x is not shrunk: at time tau the data weigh less.",
            _calls(lambda tau, low: 1),
        ),
        Mistake(
            "this is the rule of a path where alpha is always 1. On the straight path the data are "
            "shrunk as time grows.",
            _calls(lambda tau, low: 1, lambda tau, low: (tau**2 - low**2).sqrt()),
        ),
        Mistake(
            "noise of the size of tau is added to x as it is: x is not shrunk, and the noise that "
            "it holds is not counted.",
            _calls(lambda tau, low: 1, lambda tau, low: tau),
        ),
        Mistake(
            "x is shrunk as if its data had the factor 1. At the smallest time they have been "
            "shrunk a little.",
            _calls(
                lambda tau, low: 1 - tau,
                lambda tau, low: (tau**2 - ((1 - tau) * low) ** 2).sqrt(),
            ),
        ),
        Mistake(
            "the squares of the two factors sum to 1, as on a VP path. On the straight path the "
            "state at tau has another spread.",
            _calls(size=lambda tau, low: (1 - _keep(tau, low) ** 2).sqrt()),
        ),
        Mistake(
            "x is taken for clean data, and goes back along the line to the noise of the start. "
            "Each call has noise of its own.",
            _calls(lambda tau, low: 1 - tau, lambda tau, low: tau, noise=lambda z, eps, i: eps),
        ),
        Mistake(
            "x is taken for clean data. It holds a little noise already, and its data have been "
            "shrunk a little.",
            _calls(lambda tau, low: 1 - tau, lambda tau, low: tau),
        ),
        Mistake(
            "x is shrunk correctly, but the little noise that it holds is not counted, so there "
            "is too much.",
            _calls(size=lambda tau, low: tau),
        ),
        Mistake(
            "the little noise that x holds is subtracted as if x had not been shrunk.",
            _calls(size=lambda tau, low: (tau**2 - low**2).sqrt()),
        ),
        Mistake(
            "the noise is the difference of the standard deviations. Variances add.",
            _calls(size=lambda tau, low: tau - _keep(tau, low) * low),
        ),
        Mistake(
            "the root is missing: this is the variance of the fresh noise.",
            _calls(size=lambda tau, low: _fresh(tau, low) ** 2),
        ),
        Mistake(
            "no noise is added at all, and x is shrunk without it.",
            _calls(size=lambda tau, low: 0),
        ),
        Mistake(
            "the same fresh noise is used for all calls.",
            _calls(noise=lambda z, eps, i: z[0]),
        ),
        Mistake(
            "the noise of the start is used again. Each call has noise of its own.",
            _calls(noise=lambda z, eps, i: eps),
        ),
        Mistake(
            "the noises are used from the last to the first. Row i belongs to the time i.",
            _calls(noise=lambda z, eps, i: z[-1 - i]),
        ),
        Mistake(
            "the first call is missing: before any fresh noise, the function is asked at t = 1.",
            _calls(first=False),
        ),
        Mistake(
            "every call tells the function t = 1. After the first, the state has less noise.",
            _calls(ask=torch.ones_like),
        ),
        Mistake(
            "the last time is left out.",
            _calls(order=lambda taus: taus[:-1]),
        ),
        Mistake(
            "all times are left out: this is the sample of one step.",
            _calls(order=lambda taus: taus[:0]),
        ),
    ),
)

# 8 progressive_target


class _Guess:
    """A teacher's prediction of the data, bent in x and in time."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        _check_times(x, t)
        return torch.tanh(1.5 * x) * per_sample(1 + t, x) - 0.4 * per_sample(t, x) ** 2


def _progressive_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        x, step = draw(*shape).to(dtype), 0.2 + 0.01 * seed
        t = _times(draw, shape[0], 0.3, 1.0).to(dtype)
        yield _progressive_case(x, t, step, label)
    x, t = draw(4, 2), torch.full((4,), 0.25).double()
    yield _progressive_case(x, t, 0.25, "the step that ends at the data")
    yield _progressive_case(draw(4, 2), torch.ones(4).double(), 1.0, "one step for all of the way")


def _progressive_case(x: Tensor, t: Tensor, step: float, label: str) -> Case:
    """The student is a straight line, so extend the teacher's chord to t = 0."""
    middle, end = t - step / 2, t - step
    guess = _Guess()
    first = guess(x, t)
    noise = (x - per_sample(1 - t, x) * first) / per_sample(t, x)
    y = per_sample(1 - middle, x) * first + per_sample(middle, x) * noise
    second = guess(y, middle)
    noise = (y - per_sample(1 - middle, x) * second) / per_sample(middle, x)
    z = per_sample(1 - end, x) * second + per_sample(end, x) * noise
    slope = (x - z) / step
    return Case(label, (guess, x, t, step), x - per_sample(t, x) * slope)


def _ddim_line(x: Tensor, data: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One step of DDIM on the straight path, from t to s."""
    return data + per_sample(s / t, x) * (x - data)


def _two_steps(
    result: Callable[..., Tensor] = lambda x, y, z, a, b, t, s, h: (
        x + per_sample(t, x) * (z - x) / h
    ),
    half: float = 0.5,
    whole: float = 1.0,
    ask: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda t, m, s: m,
    place: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y,
) -> Callable[..., Tensor]:
    """progressive_target with another result of the three states and the two predictions.

    `half` and `whole` say where the steps end, in steps of the student; `ask` and `place` at
    which time and state the second step asks.
    """

    def wrong(denoise: Any, x: Tensor, t: Tensor, step: float) -> Tensor:
        middle, end = t - half * step, t - whole * step
        a = denoise(x, t)
        y = _ddim_line(x, a, t, middle)
        b = denoise(place(x, y), ask(t, middle, end))
        z = _ddim_line(y, b, middle, end)
        return result(x, y, z, a, b, t, end, step)

    return wrong


progressive_target = Checker(
    chapter="consistency",
    name="progressive_target",
    title="Two steps of the teacher in one",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_progressive_cases,
    mistakes=(
        Mistake(
            "this is what the teacher predicts in its second step. From the start of the student's "
            "step it does not lead to the same place.",
            _two_steps(lambda x, y, z, a, b, t, s, h: b),
        ),
        Mistake(
            "this is what the teacher predicts in its first step. The student would learn one "
            "step of the teacher, not two.",
            _two_steps(lambda x, y, z, a, b, t, s, h: a),
        ),
        Mistake(
            "this is the mean of the teacher's two predictions. Both count, but not the same.",
            _two_steps(lambda x, y, z, a, b, t, s, h: (a + b) / 2),
        ),
        Mistake(
            "this is where the teacher lands. It still holds noise: which data lead there?",
            _two_steps(lambda x, y, z, a, b, t, s, h: z),
        ),
        Mistake(
            "this is where the teacher lands, without its shrinking. Its noise must go too.",
            _two_steps(lambda x, y, z, a, b, t, s, h: z / per_sample(1 - s, x)),
        ),
        Mistake(
            "this is the velocity of the student's step, from data to noise. The data are asked "
            "for.",
            _two_steps(lambda x, y, z, a, b, t, s, h: (x - z) / h),
        ),
        Mistake(
            "this is the velocity of the student's step, with the wrong sign. The data are asked "
            "for.",
            _two_steps(lambda x, y, z, a, b, t, s, h: (z - x) / h),
        ),
        Mistake(
            "a sign is wrong: this is the noise end of the student's line, or beyond it.",
            _two_steps(lambda x, y, z, a, b, t, s, h: x - per_sample(t, x) * (z - x) / h),
        ),
        Mistake(
            "this is the noise that the student's step implies. The data are the other end.",
            _two_steps(lambda x, y, z, a, b, t, s, h: x + per_sample(1 - t, x) * (x - z) / h),
        ),
        Mistake(
            "the share of x is taken out of what the teacher reached, but the factor in front of "
            "the data was not divided away.",
            _two_steps(lambda x, y, z, a, b, t, s, h: z - per_sample(s / t, x) * x),
        ),
        Mistake(
            "in the factor of the data only its first part is there: the noise that x implies "
            "depends on the data too.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: (
                    (z - per_sample(s / t, x) * x) / per_sample(1 - s, x)
                ),
            ),
        ),
        Mistake(
            "the student keeps the noise that the teacher's first step implies. Its own noise "
            "follows from its own data.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: (
                    (z - per_sample(s / t, x) * (x - per_sample(1 - t, x) * a))
                    / per_sample(1 - s, x)
                ),
            ),
        ),
        Mistake(
            "the ratio of the two times is upside down.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: (
                    (z - per_sample(t / s, x) * x)
                    / (per_sample(1 - s, x) - per_sample(t / s, x) * per_sample(1 - t, x))
                ),
            ),
        ),
        Mistake(
            "the line is drawn from where the teacher lands with the length t, which is the one of "
            "its beginning.",
            _two_steps(lambda x, y, z, a, b, t, s, h: z + per_sample(t, x) * (z - x) / h),
        ),
        Mistake(
            "this has the step from the start to the middle only, carried on to the data as if the "
            "student went there.",
            _two_steps(lambda x, y, z, a, b, t, s, h: x + per_sample(t, x) * (y - x) / h),
        ),
        Mistake(
            "each step of the teacher is as long as the one of the student, so together they go "
            "twice as far.",
            _two_steps(half=1.0, whole=2.0),
        ),
        Mistake(
            "each step of the teacher is as long as the student's, and the student goes as far as "
            "both: twice too far.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: x + per_sample(t, x) * (z - x) / (2 * h), 1.0, 2.0
            ),
        ),
        Mistake(
            "both steps of the teacher together are half of the student's step here.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: x + per_sample(t, x) * (z - x) / (h / 2), 0.25, 0.5
            ),
        ),
        Mistake(
            "the teacher goes the right way, but the line from x to there is as long as half of "
            "the step here.",
            _two_steps(
                lambda x, y, z, a, b, t, s, h: x + per_sample(t, x) * (z - x) / (h / 2),
            ),
        ),
        Mistake(
            "in its second step the teacher is told the time of the first.",
            _two_steps(ask=lambda t, m, s: t),
        ),
        Mistake(
            "in its second step the teacher is told the time where that step ends.",
            _two_steps(ask=lambda t, m, s: s),
        ),
        Mistake(
            "in its second step the teacher is asked at the state of the first.",
            _two_steps(place=lambda x, y: x),
        ),
    ),
)

# 9 mean_flow_target


class _Average:
    """A network of (x, r, t), whose derivatives are known by hand."""

    def __call__(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        _check_times(z, r)
        _check_times(z, t)
        r, t = per_sample(r, z), per_sample(t, z)
        # A plain number here would make torch load its compiler, for two seconds.
        return torch.sin(z) + torch.sin(z) * t**2 + r * t * z - r**2

    @staticmethod
    def slopes(z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives by z, r and t."""
        return torch.cos(z) * (1 + t**2) + r * t, t * z - 2 * r, 2 * t * torch.sin(z) + r * z


def _mean_flow_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        z, v = draw(*shape).to(dtype), draw(*shape).to(dtype)
        t = _times(draw, shape[0], 0.5, 1.0).to(dtype)
        yield _mean_flow_case(z, t * draw(shape[0]).sigmoid().to(dtype), t, v, label)
    z, v, t = draw(4, 2), draw(4, 2), _times(draw, 4)
    yield _mean_flow_case(z, t.clone(), t, v, "the two times are equal")
    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    yield _mean_flow_case(draw(4, 2), zero, one, draw(4, 2), "all of the way")


def _mean_flow_case(z: Tensor, r: Tensor, t: Tensor, v: Tensor, label: str) -> Case:
    by_z, _, by_t = _Average.slopes(z, per_sample(r, z), per_sample(t, z))
    return Case(label, (_Average(), z, r, t, v), v - per_sample(t - r, z) * (by_z * v + by_t))


def _identity(
    result: Callable[..., Tensor] = lambda v, u, slope, t, r: v - (t - r) * slope,
    tangents: tuple[float, float, float] = (1, 0, 1),
    along: Callable[[Tensor, Tensor], Tensor] = lambda v, u: v,
    axes: Callable[[Tensor, Tensor], Tensor] = per_sample,
    take: Callable[[Any], Any] = lambda pair: pair[1],
) -> Callable[..., Tensor]:
    """mean_flow_target with another sum, other tangents, or another direction for z.

    `take` says which part of what `jvp` returns is used.
    """

    def wrong(u: Any, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
        value = u(z, r, t)
        rates = (tangents[0] * along(v, value), *(torch.full_like(r, c) for c in tangents[1:]))
        slope = take(torch.func.jvp(u, (z, r, t), rates))
        return result(v, value, slope, axes(t, z), axes(r, z))

    return wrong


mean_flow_target = Checker(
    chapter="consistency",
    name="mean_flow_target",
    title="The target of MeanFlow",
    kind="implementation",
    difficulty=3,
    minutes=20,
    cases=_mean_flow_cases,
    mistakes=(
        Mistake(
            "the tangents stand for other variables: here the derivative is by r, but r is held "
            "fixed and t moves.",
            _identity(tangents=(1, 1, 0)),
        ),
        Mistake(
            "the derivative moves both times. The end r of the interval is held fixed.",
            _identity(tangents=(1, 1, 1)),
        ),
        Mistake(
            "this is the partial derivative by t. The state moves with t as well.",
            _identity(tangents=(0, 0, 1)),
        ),
        Mistake(
            "the state moves, but the time that the network is told does not.",
            _identity(tangents=(1, 0, 0)),
        ),
        Mistake(
            "the state moves against the velocity. The derivative is by t, which grows.",
            _identity(tangents=(-1, 0, 1)),
        ),
        Mistake(
            "the whole derivative has the wrong sign: time runs backwards in your tangents. Or is "
            "it the sign in front of the interval?",
            _identity(tangents=(-1, 0, -1)),
        ),
        Mistake(
            "the state moves with the average velocity. At time t it moves with the one of this "
            "moment.",
            _identity(along=lambda v, u: u),
        ),
        Mistake(
            "the derivative is not multiplied by the length of the interval.",
            _identity(lambda v, u, slope, t, r: v - slope),
        ),
        Mistake(
            "the derivative is multiplied by t. The interval begins at r.",
            _identity(lambda v, u, slope, t, r: v - t * slope),
        ),
        Mistake(
            "the derivative is divided by the length of the interval. Multiply.",
            _identity(lambda v, u, slope, t, r: v - slope / (t - r)),
        ),
        Mistake(
            "the velocity of this moment is missing; the rest is right.",
            _identity(lambda v, u, slope, t, r: -(t - r) * slope),
        ),
        Mistake(
            "only the velocity of this moment is left. That is the target for an interval of "
            "length 0.",
            _identity(lambda v, u, slope, t, r: v),
        ),
        Mistake(
            "the network's own value stands in the place of the velocity. Nothing then ties it to "
            "the data.",
            _identity(lambda v, u, slope, t, r: u - (t - r) * slope),
        ),
        Mistake(
            "this is the derivative, not the target.",
            _identity(lambda v, u, slope, t, r: slope),
        ),
        Mistake(
            "this is the network's value: torch gives two things back, the value and the "
            "derivative.",
            _identity(lambda v, u, slope, t, r: u),
        ),
        Mistake(
            "the network's value was taken for its derivative: torch gives two things back, the "
            "value first.",
            _identity(lambda v, u, slope, t, r: v - (t - r) * u),
        ),
        Mistake(
            "torch gives a pair back, and the pair was multiplied. Which of its parts is the "
            "derivative?",
            _identity(take=lambda pair: pair),
        ),
        Mistake(
            "the network is asked with its two times exchanged: the earlier one comes first.",
            lambda u, z, r, t, v: _identity()(lambda a, b, c: u(a, c, b), z, r, t, v),
        ),
        Mistake(
            "this is the error, network minus target. The target alone is asked for.",
            _identity(lambda v, u, slope, t, r: u - v + (t - r) * slope),
        ),
        Mistake(
            "the times of shape (B,) met the last axis. They belong to the first.",
            _identity(axes=lambda values, z: values),
        ),
    ),
)

# 10 blur_experiment

OUTCOMES = ("less", "more", "all")
Blur = tuple[str, dict[str, Tensor]]
STEPS = (1, 2, 4, 8, 32)


class _Points:
    """Best guess of the data, if the data are a few points: E[x0 | xt] on the straight path."""

    def __init__(self, places: tuple[float, ...], shares: tuple[float, ...]) -> None:
        self.places = torch.tensor(places).double()
        self.shares = torch.tensor(shares).double()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Data of shape (B,) for states and times of shape (B,)."""
        _check_times(x, t)
        gaps = x[:, None] - (1 - t)[:, None] * self.places
        scores = self.shares.log() - gaps.square() / (2 * t[:, None] ** 2)
        return scores.softmax(1) @ self.places

    def flow(self, eps: Tensor) -> Tensor:
        """Where the exact paths end: they keep the order of the particles."""
        rank = torch.special.ndtr(eps)
        borders = self.shares.cumsum(0)[:-1]
        return self.places[torch.bucketize(rank, borders)]


def _blur_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for places, shares, label in (
        ((-1.0, 1.0), (0.5, 0.5), "two points, -1 and 1"),
        ((0.0, 4.0), (0.25, 0.75), "two points with unequal shares"),
        ((-2.0, 0.0, 1.0), (0.3, 0.3, 0.4), "three points"),
    ):
        points, eps = _Points(places, shares), draw(1000)
        found = [_walk(points, eps, n).var(correction=0) for n in STEPS]
        exact = points.flow(eps).var(correction=0)
        answer = (frozenset(OUTCOMES), {"ddim": torch.stack(found), "flow": exact})
        yield Case(label, (points, points.flow, eps, STEPS), answer, tolerance=1e-6)


def _walk(denoise: Any, eps: Tensor, steps: int) -> Tensor:
    x, ts = eps, torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(ts):
        data = denoise(x, t.expand(len(x)))
        noise = (x - (1 - t) * data) / t
        x = (1 - s) * data + s * noise
    return x


def _blurred(
    move: Callable[..., Tensor] = lambda x, data, t, s: data + s / t * (x - data),
    spread: Callable[[Tensor], Tensor] = lambda x: x.var(correction=0),
    ask: Callable[[Tensor, Tensor], Tensor] = lambda t, s: t,
    count: Callable[[int], int] = lambda n: n,
    rest: Callable[..., Tensor] = lambda flow, eps, x: flow(eps),
    grid: Callable[[int], Tensor] = lambda n: torch.linspace(1, 0, n + 1, dtype=torch.float64),
) -> Callable[..., Blur]:
    """blur_experiment with another step, another measure, or other times."""

    def wrong(denoise: Any, flow: Any, eps: Tensor, steps: tuple[int, ...]) -> Blur:
        found, x = [], eps
        for n in steps:
            x, ts = eps, grid(count(n))
            for t, s in itertools.pairwise(ts):
                x = move(x, denoise(x, ask(t, s).expand(len(x))), t, s)
            found.append(spread(x))
        measured = {"ddim": torch.stack(found), "flow": spread(rest(flow, eps, x))}
        return OUTCOMES[0], measured

    return wrong


def _blur_remark(value: Blur) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    found, exact = measured["ddim"].tolist(), measured["flow"].item()
    verb = foretold(prediction, "less")
    return (
        f"the data have variance {exact:.3f}. One step gives {abs(found[0]):.3f}, two give "
        f"{found[1]:.3f} ({verb}), {STEPS[-1]} give {found[-1]:.3f}."
    )


blur_experiment = Checker(
    chapter="consistency",
    name="blur_experiment",
    title="What one step of a denoiser makes",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_blur_cases,
    mistakes=(
        Mistake(
            "these are standard deviations. The variance is asked for.",
            _blurred(spread=lambda x: x.std(correction=0)),
        ),
        Mistake(
            "the variance divides by N - 1 here. Divide by N.",
            _blurred(spread=lambda x: x.var()),
        ),
        Mistake(
            "these are mean squares. The variance counts from the mean.",
            _blurred(spread=lambda x: x.square().mean()),
        ),
        Mistake(
            "all walks of DDIM end at one point. Does each begin at the noise? Does a step put "
            "noise back, and is the denoiser told the time that has come?",
            _blurred(lambda x, data, t, s: data),
        ),
        Mistake(
            "each walk has one step too few: between so many times there is one step less.",
            _blurred(count=lambda n: n - 1),
        ),
        Mistake(
            "time rises here. A walk begins at the noise, at t = 1, and time falls.",
            _blurred(grid=lambda n: torch.linspace(0, 1, n + 1, dtype=torch.float64)),
        ),
        Mistake(
            "each walk has one step too many.",
            _blurred(count=lambda n: n + 1),
        ),
        Mistake(
            "the noise at the start is put back at every step. The step keeps the noise that "
            "state and prediction imply together.",
            lambda denoise, flow, eps, steps: _blurred(
                lambda x, data, t, s: (1 - s) * data + s * eps
            )(denoise, flow, eps, steps),
        ),
        Mistake(
            "the state is put back as if it were the noise.",
            _blurred(lambda x, data, t, s: (1 - s) * data + s * x),
        ),
        Mistake(
            "the velocity is the state minus the prediction here. Divide by the time: the state "
            "is not yet the noise.",
            _blurred(lambda x, data, t, s: x - (t - s) * (x - data)),
        ),
        Mistake(
            "a sign is wrong: the step leads away from the prediction.",
            _blurred(lambda x, data, t, s: x + (t - s) / t * (x - data)),
        ),
        Mistake(
            "in the implied noise the share of the data is not taken out of the state.",
            _blurred(lambda x, data, t, s: (1 - s) * data + s / t * x),
        ),
        Mistake(
            "in the implied noise the whole prediction is taken out of the state. At time t only a "
            "part of it is in there.",
            _blurred(lambda x, data, t, s: (1 - s) * data + s / t * (x - data)),
        ),
        Mistake(
            "the last step is missing: the walk stops one step before the data.",
            _blurred(grid=lambda n: torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1]),
        ),
        Mistake(
            "the values of DDIM are right. For the flow you measured the noise that goes in.",
            _blurred(rest=lambda flow, eps, x: eps),
        ),
        Mistake(
            "the values of DDIM are right. For the flow you measured the longest walk of DDIM.",
            _blurred(rest=lambda flow, eps, x: x),
        ),
        Mistake(
            "the values of DDIM are right. The exact flow starts at the noise, not at what DDIM "
            "made of it.",
            _blurred(rest=lambda flow, eps, x: flow(x)),
        ),
    ),
    remark=_blur_remark,
)

CHECKERS = (
    consistency_gaussian,
    ddim_boundary,
    consistency_loss,
    pseudo_huber,
    training_pair,
    doubling_curriculum,
    multistep,
    progressive_target,
    mean_flow_target,
    blur_experiment,
)
