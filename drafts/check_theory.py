"""Checks of the exercises on theory.

Right answers come from known constants, from equations of means that are solved in closed form,
from quantiles, from Bayes' rule with weights that are counted, and from covariances that are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import normal, with_single

__all__ = ["CHECKERS"]

# 1 kl_rate


def _rate_cases(seed: int) -> Iterator[Case]:
    """The error of the score is drawn, and what it makes of the other faces is written out."""
    draw = normal(seed)
    off, sigma, g2 = draw(3, 6), 0.2 + draw(6).sigmoid(), 0.3 + draw(6).exp()
    rate = (g2 * off.square()).mean(0) / 2
    for face, factor in (("score", 0 * g2 - 1), ("noise", sigma), ("velocity", g2 / 2)):
        error = (off * factor).square().mean(0)
        yield Case(f"{face} prediction", (error, face, sigma, g2), rate)


def _rate(
    score: Callable[..., Tensor] = lambda g2: g2 / 2,
    noise: Callable[..., Tensor] = lambda s, g2: g2 / (2 * s**2),
    velocity: Callable[..., Tensor] = lambda g2: 2 / g2,
) -> Callable[..., Tensor]:
    """kl_rate with another weight for one of the faces."""

    def wrong(error: Tensor, face: str, sigma: Tensor, g2: Tensor) -> Tensor:
        weights = {"score": score(g2), "noise": noise(sigma, g2), "velocity": velocity(g2)}
        return weights[face] * error

    return wrong


kl_rate = Checker(
    chapter="theory",
    name="kl_rate",
    title="What an error costs",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_rate_cases),
    mistakes=(
        Mistake(
            "all errors have the weight g^2/2. That is right for the score; a noise or a velocity "
            "that is off by e is a score that is off by something else.",
            lambda error, face, sigma, g2: g2 / 2 * error,
        ),
        Mistake(
            "the factor one half is missing.",
            lambda error, face, sigma, g2: 2 * _rate()(error, face, sigma, g2),
        ),
        Mistake(
            "the noise is divided by sigma, but its square counts: sigma^2.",
            _rate(noise=lambda s, g2: g2 / (2 * s)),
        ),
        Mistake(
            "the error of the velocity is g^2/2 times that of the score, not g^2: the ODE has "
            "half of the SDE's.",
            _rate(velocity=lambda g2: 1 / (2 * g2)),
        ),
        Mistake(
            "for the velocity, g^2 stands in the numerator. The error of the score is the one "
            "that is divided.",
            _rate(velocity=lambda g2: g2**3 / 8),
        ),
    ),
)

# 2 gronwall


def _gronwall_cases(seed: int) -> Iterator[Case]:
    """Steps are written out one by one, from the smallest time on."""
    draw = normal(seed)
    for N, label in ((1, "one step"), (6, "unequal steps"), (40, "many steps")):
        times = torch.cumsum(0.05 + draw(N + 1).sigmoid() / N, 0)
        rates, errors = draw(N + 1), draw(N + 1).abs()
        total, grown = 0.0, 0.0
        for i in range(N):
            h = (times[i + 1] - times[i]).item()
            more = grown + h * (rates[i] + rates[i + 1]).item() / 2
            total += h / 2 * (math.exp(grown) * errors[i] + math.exp(more) * errors[i + 1]).item()
            grown = more
        yield Case(label, (times, rates, errors), torch.tensor(total, dtype=torch.float64))


def _grown(times: Tensor, rates: Tensor) -> Tensor:
    grown = torch.cumulative_trapezoid(rates, times)
    return torch.cat([torch.zeros_like(grown[:1]), grown])


gronwall = Checker(
    chapter="theory",
    name="gronwall",
    title="How errors grow",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=with_single(_gronwall_cases),
    mistakes=(
        Mistake(
            "the factor is 1 at the last time in place of the first: errors that enter early in "
            "sampling, at large t, have the longest way to grow.",
            lambda t, r, e: torch.trapezoid((_grown(t, r)[-1] - _grown(t, r)).exp() * e, t),
        ),
        Mistake(
            "every error grows by the whole exponential. Each has only the time that is left.",
            lambda t, r, e: torch.trapezoid(_grown(t, r)[-1].exp() * e, t),
        ),
        Mistake(
            "the errors do not grow at all.",
            lambda t, r, e: torch.trapezoid(e, t),
        ),
        Mistake(
            "the factors have the wrong sign in the exponent.",
            lambda t, r, e: torch.trapezoid((-_grown(t, r)).exp() * e, t),
        ),
        Mistake(
            "the rates are multiplied by the time, not integrated.",
            lambda t, r, e: torch.trapezoid((r * (t - t[0])).exp() * e, t),
        ),
    ),
)

# 3 stopping_price


def _price_cases(seed: int) -> Iterator[Case]:
    """W2 of two normals, from their quantiles: here x0 and a x0, with a known a."""
    draw = normal(seed)
    a = draw(5).sigmoid() + 0.1
    for spread, D, label in ((1.0, 1, "one number"), (0.4, 64, "an image"), (0.0, 3, "a point")):
        end = 2.5 * spread * a + (spread == 0) * a  # standard deviation of x_t
        alpha = 0.2 + 0.5 * a / 1.1
        sigma = (end**2 - (alpha * spread) ** 2).sqrt()
        answer = ((end - spread).square() * D).sqrt()
        keep = sigma.isfinite()
        yield Case(label, (alpha[keep], sigma[keep], spread, D), answer[keep])


stopping_price = Checker(
    chapter="theory",
    name="stopping_price",
    title="The price of stopping early",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=_price_cases,
    mistakes=(
        Mistake(
            "this is the bound of the chapter. For Gaussian data the distance is less: noise can "
            "be matched with the data's own spread.",
            lambda a, s, c, D: (((1 - a) * c) ** 2 * D + s**2 * D).sqrt(),
        ),
        Mistake(
            "sqrt(D) is missing: every coordinate contributes.",
            lambda a, s, c, D: ((a**2 * c**2 + s**2).sqrt() - c).abs(),
        ),
        Mistake(
            "the distance grows with sqrt(D), not with D.",
            lambda a, s, c, D: D * ((a**2 * c**2 + s**2).sqrt() - c).abs(),
        ),
        Mistake(
            "standard deviations were added; variances add.",
            lambda a, s, c, D: math.sqrt(D) * (a * c + s - c).abs(),
        ),
        Mistake(
            "alpha is missing: the data shrink as well.",
            lambda a, s, c, D: math.sqrt(D) * ((c**2 + s**2).sqrt() - c).abs(),
        ),
        Mistake(
            "a distance is not negative.",
            lambda a, s, c, D: math.sqrt(D) * ((a**2 * c**2 + s**2).sqrt() - c),
        ),
    ),
)

# 4 empirical_denoiser


def _empirical_cases(seed: int) -> Iterator[Case]:
    """Bayes' rule with plain numbers, sample by sample."""
    draw = normal(seed)
    for n, shape, label in ((1, (3,), "one point"), (4, (2,), "vectors"), (3, (1, 2, 2), "images")):
        points, xt = draw(n, *shape), draw(5, *shape)
        alpha, sigma = draw(5).sigmoid(), 0.3 + draw(5).sigmoid()
        answer = torch.zeros_like(xt)
        for b in range(5):
            far = [float((xt[b] - alpha[b] * p).square().sum()) for p in points]
            likely = [math.exp(-d / (2 * float(sigma[b]) ** 2)) for d in far]
            for p, w in zip(points, likely, strict=True):
                answer[b] += w / sum(likely) * p
        yield Case(label, (points, xt, alpha, sigma), answer)
    yield Case(
        "nearly no noise",
        (points, points[:2] * 0.9, torch.full((2,), 0.9).double(), torch.full((2,), 1e-3).double()),
        points[:2],
    )


def _table(
    scale: Callable[[Tensor], Tensor] = lambda a: a,
    width: Callable[[Tensor], Tensor] = lambda s: 2 * s**2,
    values: Callable[[Tensor, Tensor], Tensor] = lambda p, a: p,
    safe: bool = True,
) -> Callable[..., Tensor]:
    """empirical_denoiser with another distance, width or value."""

    def wrong(points: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        flat = points.flatten(1)
        off = xt.flatten(1)[:, None] - scale(alpha)[:, None, None] * flat
        logits = -off.square().sum(2) / width(sigma)[:, None]
        weights = logits.softmax(1) if safe else logits.exp()
        return (weights @ flat).view_as(xt) * values(torch.ones_like(xt), alpha)

    return wrong


empirical_denoiser = Checker(
    chapter="theory",
    name="empirical_denoiser",
    title="The perfect minimiser",
    kind="implementation",
    difficulty=1,
    minutes=15,
    cases=with_single(_empirical_cases),
    mistakes=(
        Mistake(
            "x_t is compared with the training points themselves. They were multiplied by alpha.",
            _table(scale=torch.ones_like),
        ),
        Mistake("a normal density has 2 sigma^2 below the square.", _table(width=lambda s: s**2)),
        Mistake(
            "sigma stands below the square where sigma^2 belongs.", _table(width=lambda s: 2 * s)
        ),
        Mistake("the weights do not sum to one.", _table(safe=False)),
        Mistake(
            "the values are alpha times the training points: that is E[alpha x_0 | x_t].",
            _table(values=lambda o, a: o * a.reshape(-1, *[1] * (o.ndim - 1))),
        ),
    ),
)

# 5 collapse_ratio


def _collapse_cases(seed: int) -> Iterator[Case]:
    """From the ratio to the number of points that it carries, and back."""
    for D, spread, n in ((2, 1.0, 10 + seed), (64, 0.5, 1000), (3072, 1.0, 50_000 + seed)):
        yield Case(f"D = {D}", (n, D, spread), (n ** (2 / D) - 1) ** 0.5 / spread)


collapse_ratio = Checker(
    chapter="theory",
    name="collapse_ratio",
    title="When the table chooses",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=_collapse_cases,
    mistakes=(
        Mistake(
            "this is the square of the ratio.",
            lambda n, D, c: math.expm1(2 * math.log(n) / D) / c**2,
        ),
        Mistake(
            "the spread of the data divides: wider data are told apart earlier.",
            lambda n, D, c: math.sqrt(math.expm1(2 * math.log(n) / D)) * c,
        ),
        Mistake(
            "a factor two is missing in the exponent: the capacity is D/2 times the logarithm.",
            lambda n, D, c: math.sqrt(math.expm1(math.log(n) / D)) / c,
        ),
        Mistake(
            "the 1 of 1 + alpha^2 spread^2 / sigma^2 is forgotten.",
            lambda n, D, c: math.sqrt(n ** (2 / D)) / c,
        ),
        Mistake(
            "logarithms here are natural, not of base 2.",
            lambda n, D, c: math.sqrt(math.expm1(2 * math.log2(n) / D)) / c,
        ),
    ),
)

# 6 copies


def _copies_cases(seed: int) -> Iterator[Case]:
    """Samples that stand a known part of the way between two far points."""
    draw = normal(seed)
    axis = draw(6)
    points = torch.stack([0 * axis, axis, 40 * axis])
    for parts, label in (
        ((0.0, 0.2, 0.24, 0.26, 0.5, 1.1), "on both sides of the limit"),
        ((0.3, 0.35, 0.4), "none"),
        ((0.05, 0.99), "all"),
    ):
        part = torch.tensor(parts).double()
        near = torch.minimum(part, (1 - part).abs()) / torch.maximum(part, (1 - part).abs())
        yield Case(
            label, (part[:, None] * axis, points), sum(r < 1 / 3 for r in near.tolist()) / len(part)
        )
        images = (part[:, None] * axis).reshape(-1, 1, 2, 3), points.reshape(-1, 1, 2, 3)
        yield Case(f"{label}, images", images, sum(r < 1 / 3 for r in near.tolist()) / len(part))


def _count(limit: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., float]:
    """copies with another criterion, of squared distances."""

    def wrong(x: Tensor, points: Tensor) -> float:
        squared = (x.flatten(1)[:, None] - points.flatten(1)).square().sum(2)
        first, second = squared.topk(2, largest=False)[0].unbind(1)
        return limit(first, second).double().mean().item()

    return wrong


copies = Checker(
    chapter="theory",
    name="copies",
    title="Counting copies",
    kind="bug",
    difficulty=1,
    minutes=10,
    cases=_copies_cases,
    mistakes=(
        Mistake(
            "squared distances are compared with a ratio of distances: of squares it is a ninth.",
            _count(lambda a, b: a < b / 3),
        ),
        Mistake(
            "the ratio is of distances, so a third: here it is a ninth of the distance.",
            _count(lambda a, b: a < b / 81),
        ),
        Mistake("those that are *not* copies were counted.", _count(lambda a, b: a >= b / 9)),
        Mistake(
            "every sample is nearer to the nearest than to the second: the third is missing.",
            _count(lambda a, b: a < b),
        ),
    ),
)

# 7 denoiser_error


def _error_cases(seed: int) -> Iterator[Case]:
    """Linear denoisers of Gaussians, whose posterior covariance is known."""
    draw = normal(seed)
    for shape, label in (((3,), "vectors"), ((1, 2, 2), "images")):
        D = math.prod(shape)
        axes = torch.linalg.qr(draw(D, D))[0]
        c = 0.2 + draw(D).sigmoid()
        alpha, sigma = 0.6, 0.8
        lost = c * sigma**2 / (alpha**2 * c + sigma**2)
        J = alpha / sigma**2 * (axes * lost) @ axes.T

        def denoise(x: Tensor, J: Tensor = J) -> Tensor:
            return (x.flatten(1) @ J.to(x).T).view_as(x)

        # probes that are the axes' corners: all signs, so that the estimate is exact
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * D)
        probes = corners[:, None].expand(-1, 2, -1).reshape(-1, 2, *shape)
        answer = lost.sum().expand(2).clone()
        yield Case(label, (denoise, draw(2, *shape), alpha, sigma, probes), answer)


def _traced(
    factor: Callable[[float, float], float] = lambda a, s: s**2 / a,
    square: bool = False,
    mean: bool = True,
) -> Callable[..., Tensor]:
    """denoiser_error with another factor, or |J e|^2."""

    def wrong(denoise: Any, xt: Tensor, alpha: float, sigma: float, probes: Tensor) -> Tensor:
        x = xt.detach().requires_grad_()
        y, traces = denoise(x), []
        for e in probes:
            row = torch.autograd.grad((y * e).sum(), x, retain_graph=True)[0]
            traces.append((row * (row if square else e)).flatten(1).sum(1))
        total = torch.stack(traces).sum(0) / (len(probes) if mean else 1)
        return factor(alpha, sigma) * total

    return wrong


denoiser_error = Checker(
    chapter="theory",
    name="denoiser_error",
    title="A denoiser knows its own error",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=_error_cases,
    mistakes=(
        Mistake("this is the trace alone: sigma^2 / alpha is missing.", _traced(lambda a, s: 1.0)),
        Mistake("sigma^2 is divided by alpha, not multiplied.", _traced(lambda a, s: s**2 * a)),
        Mistake("the factor is upside down.", _traced(lambda a, s: a / s**2)),
        Mistake(
            "the mean of |J e|^2 is the sum of the squares of J. The trace is the mean of e J e.",
            _traced(square=True),
        ),
        Mistake("the probes were added, not averaged.", _traced(mean=False)),
    ),
)

# 8 project


def _project_cases(seed: int) -> Iterator[Case]:
    """Directions of length one, times lengths that are known."""
    draw = normal(seed)
    for shape, label in (((2,), "vectors"), ((1, 4, 4), "images")):
        v = draw(4, *shape)
        unit = v / v.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
        lengths = torch.tensor([0.3, 1.0, 4.0, 20.0]).double().reshape(-1, *[1] * len(shape))
        yield Case(label, (lengths * unit, 1.5), lengths.clamp(max=1.5) * unit)


def _per_image(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).reshape(-1, *[1] * (delta.ndim - 1))


project = Checker(
    chapter="theory",
    name="project",
    title="Stay within the ball",
    kind="bug",
    difficulty=1,
    minutes=10,
    cases=with_single(_project_cases),
    mistakes=(
        Mistake(
            "the norm is that of the whole batch, so the images share one ball.",
            lambda d, r: d * min(1.0, r / d.norm().item()),
        ),
        Mistake(
            "what was inside the ball was moved to its edge.",
            lambda d, r: d * r / _per_image(d),
        ),
        Mistake(
            "every number was clamped. That is a cube (the largest norm), not a ball.",
            lambda d, r: d.clamp(-r, r),
        ),
        Mistake(
            "the squared length was compared with the radius.",
            lambda d, r: d * (r / _per_image(d) ** 2).clamp(max=1),
        ),
    ),
)

# 9 guided_mean


def _mean(mu: float, v: float, s: float, half: float = 1.0) -> float:
    """By the integrating factor: s mu / 2 sqrt(v^(1-s)) int (1+r)^(-1-s/2) (v+r)^((s-1)/2) dr."""
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    tau = (u / (1 - u)) ** 2
    rate = (1 + tau) ** (-1 - s / 2) * (v + tau) ** ((s - 1) / 2) * 2 * u / (1 - u) ** 3
    return half * s * mu / 2 * v ** ((1 - s) / 2) * (rate.sum().item() / 20_000)


def _mean_cases(seed: int) -> Iterator[Case]:
    for mu, v, s in ((1.0, 2.0, 1.0), (1.0, 2.0, 3.0), (0.5 + seed, 1.5, 2.0)):
        yield Case(f"v = {v}, s = {s}", (mu, v, s), _mean(mu, v, s), 0.02)


guided_mean = Checker(
    chapter="theory",
    name="guided_mean",
    title="Where guidance takes the mean",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_mean_cases,
    mistakes=(
        Mistake(
            "this is the mean of the tilted density. The guided ODE does not sample it.",
            lambda mu, v, s: s * mu / (s + (1 - s) / v),
        ),
        Mistake(
            "this is s times the mean, which is right only if the variances are equal.",
            lambda mu, v, s: s * mu,
        ),
        Mistake("guidance was left out: this is the mean of the class.", lambda mu, v, s: mu),
        Mistake(
            "this is about twice the mean: the ODE has half of the score.",
            lambda mu, v, s: 2 * _mean(mu, v, s),
        ),
    ),
)

CHECKERS = (
    kl_rate,
    gronwall,
    stopping_price,
    empirical_denoiser,
    collapse_ratio,
    copies,
    denoiser_error,
    project,
    guided_mean,
)
