"""Checks of the exercises on composition.

Right answers come from known axes, from equations of variances that are integrated step by step,
from densities whose scores are known by hand, from responsibilities that are written out and from
particles that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample, with_single

__all__ = ["CHECKERS"]

BATCHES = (*SHAPES[:2], (IMAGES, torch.float64, "two images, double precision"))


def _sum(x: Tensor) -> Tensor:
    """The sum over all but the first axis, shape (B,)."""
    return x.reshape(len(x), -1).sum(1)


# 1 product_gaussian

POWERS = (
    ((1.0, 1.0), "two models, AND"),
    ((2.0, 1.0, 0.5), "three models with powers"),
    ((1.5, -0.25), "a negative power"),
)


def _gaussian_cases(seed: int) -> Iterator[Case]:
    """All covariances have the same known axes, so that nothing has to be inverted."""
    draw = normal(seed)
    for i, (powers, label) in enumerate(POWERS):
        D, w = 3 - i, torch.tensor(powers).double()
        axes = torch.linalg.qr(draw(D, D))[0]
        variances, along = 0.5 + draw(len(w), D).sigmoid(), draw(len(w), D)
        variances[-1] += 1.0
        means, covs = along @ axes.T, torch.einsum("de,ke,fe->kdf", axes, variances, axes)
        total = (w[:, None] / variances).sum(0)
        mean = axes @ ((w[:, None] * along / variances).sum(0) / total)
        dtype = torch.float32 if i == 1 else torch.float64
        args = tuple(v.to(dtype) for v in (means, covs, w))
        yield Case(label, args, tuple(v.to(dtype) for v in (mean, (axes / total) @ axes.T)))


def _multiplied(
    precision: Callable[..., Tensor] = lambda P, w: (w[:, None, None] * P).sum(0),
    shift: Callable[..., Tensor] = lambda P, m, w: (w[:, None] * (P @ m[:, :, None])[..., 0]).sum(
        0
    ),
    result: Callable[..., Any] = lambda C, P, b: (C @ b, C),
) -> Callable[..., Any]:
    """product_gaussian with another precision, another linear part, or other values."""

    def wrong(means: Tensor, covs: Tensor, w: Tensor) -> Any:
        each = torch.linalg.inv(covs)
        total = precision(each, w)
        return result(torch.linalg.inv(total), total, shift(each, means, w))

    return wrong


def _averaged_gaussian(means: Tensor, covs: Tensor, w: Tensor) -> Any:
    share = w / w.sum()
    return share @ means, (share[:, None, None] * covs).sum(0)


product_gaussian = Checker(
    chapter="composition",
    name="product_gaussian",
    title="The product of Gaussians",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=_gaussian_cases,
    mistakes=(
        Mistake(
            "means and covariances were averaged. That is no product: in a logarithm the "
            "precisions add.",
            _averaged_gaussian,
        ),
        Mistake(
            "the powers are missing: all models count once.",
            _multiplied(lambda P, w: P.sum(0), lambda P, m, w: (P @ m[:, :, None])[..., 0].sum(0)),
        ),
        Mistake(
            "the powers are in the precision, but not in its product with the mean.",
            _multiplied(shift=lambda P, m, w: (P @ m[:, :, None])[..., 0].sum(0)),
        ),
        Mistake(
            "the means are averaged with the powers alone. Each counts with its precision too.",
            _multiplied(
                shift=lambda P, m, w: (w[:, None, None] * P).sum(0) @ (w @ m / w.sum()),
            ),
        ),
        Mistake(
            "this is the precision of the product. The covariance is its inverse.",
            _multiplied(result=lambda C, P, b: (C @ b, P)),
        ),
        Mistake(
            "the vector is precision times mean. Solve for the mean.",
            _multiplied(result=lambda C, P, b: (b, C)),
        ),
        Mistake(
            "the powers were scaled to sum to one. A product of two is sharper than either.",
            lambda m, C, w: _multiplied()(m, C, w / w.sum()),
        ),
        Mistake(
            "the powers divide the precisions. A power multiplies the logarithm, and the precision "
            "with it.",
            lambda m, C, w: _multiplied()(m, C, 1 / w),
        ),
        Mistake(
            "each entry of the covariance was inverted by itself. The inverse of the matrix is "
            "needed.",
            lambda m, C, w: _multiplied()(m, torch.linalg.inv(1 / C), w),
        ),
    ),
)

# 2 summed_variances


def _variance_cases(seed: int) -> Iterator[Case]:
    """The two equations of the variance, by the midpoint rule with many steps."""
    for total, B in ((2.0, 2.0 + seed), (1.5, 0.7), (1.0, 3.0), (3.0, 1.0 + seed / 2)):
        label = f"powers that sum to {total:g}, B = {B:g}"
        yield Case(label, (total, B), (_flow(1 - total, 0, B), _flow(1 - 2 * total, 1, B)), 1e-5)


def _flow(rate: float, source: float, B: float, steps: int = 2000) -> float:
    """V(B) of V' = rate V + source, V(0) = 1, by Runge-Kutta's midpoint rule."""
    V, h = 1.0, B / steps
    for _ in range(steps):
        half = V + h / 2 * (rate * V + source)
        V += h * (rate * half + source)
    return V


def _variances(
    ode: Callable[[float, float], float] = lambda w, B: math.exp((1 - w) * B),
    rest: Callable[[float], float] = lambda w: 1 / (2 * w - 1),
    decay: Callable[[float, float], float] = lambda w, B: math.exp(-(2 * w - 1) * B),
) -> Callable[..., tuple[float, float]]:
    """summed_variances with another ODE, another rest state, or another rate towards it."""
    return lambda w, B: (ode(w, B), rest(w) + (1 - rest(w)) * decay(w, B))


summed_variances = Checker(
    chapter="composition",
    name="summed_variances",
    title="What solvers make of a summed score",
    kind="derivation",
    difficulty=2,
    minutes=25,
    cases=_variance_cases,
    mistakes=(
        Mistake(
            "the first value is a factor of the samples. Their variance has its square.",
            _variances(ode=lambda w, B: math.exp((1 - w) * B / 2)),
        ),
        Mistake(
            "the second value is where the reverse SDE comes to rest. After a time B the start is "
            "not quite forgotten.",
            _variances(decay=lambda w, B: 0.0),
        ),
        Mistake(
            "the second value tends to the variance of the product, 1 / w. The reverse SDE does "
            "not: its drift has the forward one in it.",
            _variances(rest=lambda w: 1 / w, decay=lambda w, B: math.exp(-2 * w * B)),
        ),
        Mistake(
            "the second rate is that of the samples. The variance forgets twice as fast.",
            _variances(decay=lambda w, B: math.exp(-(2 * w - 1) * B / 2)),
        ),
        Mistake(
            "in the ODE the forward drift is missing: for powers that sum to one nothing may "
            "change.",
            _variances(ode=lambda w, B: math.exp(-w * B)),
        ),
        Mistake(
            "the ODE has the whole score in it. It takes half of it, the SDE all.",
            _variances(ode=lambda w, B: math.exp((1 - 2 * w) * B)),
        ),
        Mistake(
            "the exponent of the ODE has the wrong sign: a summed score with w > 1 pulls inwards.",
            _variances(ode=lambda w, B: math.exp((w - 1) * B)),
        ),
        Mistake(
            "the second value is the variance of the product, 1 / w. Solve the equation of the "
            "variance for the reverse SDE.",
            _variances(rest=lambda w: 1 / w, decay=lambda w, B: 0.0),
        ),
        Mistake(
            "the reverse SDE starts with variance 0 here. Noise has variance 1.",
            lambda w, B: (
                math.exp((1 - w) * B),
                (1 - math.exp(-(2 * w - 1) * B)) / (2 * w - 1),
            ),
        ),
        Mistake(
            "the forward drift has the wrong sign: backwards in time it pushes outwards.",
            _variances(
                ode=lambda w, B: math.exp(-(1 + w) * B),
                rest=lambda w: 1 / (2 * w + 1),
                decay=lambda w, B: math.exp(-(2 * w + 1) * B),
            ),
        ),
        Mistake(
            "the two values are exchanged: the ODE is asked for first.",
            lambda w, B: _variances()(w, B)[::-1],
        ),
    ),
)

# 3 product_data


def _data_cases(seed: int) -> Iterator[Case]:
    """Predictions with known scores: x0_i = (x + sigma^2 s_i) / alpha."""
    draw = normal(seed)
    for (shape, dtype, label), powers in zip(
        BATCHES, ((1, 1), (2, -0.5), (1, 1, -0.5)), strict=True
    ):
        w = torch.tensor(powers).double()
        x, scores = draw(*shape), draw(len(w), *shape)
        angle = 0.3 + draw(shape[0]).sigmoid()
        alpha, sigma = angle.cos(), angle.sin()
        a, s = per_sample(alpha, x), per_sample(sigma, x)
        predictions = (x + s**2 * scores) / a
        right = (x + s**2 * torch.tensordot(w, scores, 1)) / a
        args = tuple(v.to(dtype) for v in (predictions, x, alpha, sigma, w))
        yield Case(f"powers {powers}; {label}", args, right.to(dtype))


def _product_data(
    rest: Callable[..., Any] = lambda w, x, a, s: (1 - w.sum()) * x / a,
    share: Callable[[Tensor], Tensor] = lambda w: w,
    axes: Callable[[Tensor, Tensor], Tensor] = per_sample,
) -> Callable[..., Tensor]:
    """product_data with another remainder, or other weights."""

    def wrong(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, w: Tensor) -> Tensor:
        a, s = axes(alpha, x), axes(sigma, x)
        return torch.tensordot(share(w), x0, 1) + rest(share(w), x, a, s)

    return wrong


product_data = Checker(
    chapter="composition",
    name="product_data",
    title="The denoised sample of a product",
    kind="bug",
    difficulty=2,
    minutes=15,
    cases=_data_cases,
    mistakes=(
        Mistake(
            "the predictions of the data are summed. Scores add; a prediction of the data is "
            "x / alpha and a score, and x / alpha is needed once only.",
            _product_data(lambda w, x, a, s: 0),
        ),
        Mistake(
            "the weights were scaled to sum to one: this is an average of the models, not their "
            "product.",
            _product_data(share=lambda w: w / w.sum()),
        ),
        Mistake(
            "what is left over is x itself here. By Tweedie's formula x is divided by alpha.",
            _product_data(lambda w, x, a, s: (1 - w.sum()) * x),
        ),
        Mistake(
            "the remainder has the wrong sign.",
            _product_data(lambda w, x, a, s: (w.sum() - 1) * x / a),
        ),
        Mistake(
            "x / alpha is subtracted once. How often is it in the sum, and how often should it be?",
            _product_data(lambda w, x, a, s: -x / a),
        ),
        Mistake(
            "the number of models stands where the sum of their powers belongs.",
            _product_data(lambda w, x, a, s: (1 - len(w)) * x / a),
        ),
        Mistake(
            "the powers are missing: all models count once.",
            _product_data(share=torch.ones_like),
        ),
        Mistake(
            "the remainder is divided by sigma. The x in Tweedie's formula is divided by alpha.",
            _product_data(lambda w, x, a, s: (1 - w.sum()) * x / s),
        ),
        Mistake(
            "the factors of shape (B,) met the last axis. They belong to the first.",
            _product_data(axes=lambda v, x: v),
        ),
    ),
)

# 4 log_acceptance


class _Quartic:
    """A density with a known score: log p = -|x|^4 / 4 - |x|^2 / 2, not normalised."""

    def __call__(self, x: Tensor) -> Tensor:
        square = _sum(x.square())
        return -(square**2) / 4 - square / 2

    def score(self, x: Tensor) -> Tensor:
        return -(per_sample(_sum(x.square()), x) + 1) * x


def _acceptance_cases(seed: int) -> Iterator[Case]:
    """The answer by normal densities of torch, with their constants."""
    draw, target = normal(seed), _Quartic()
    for shape, dtype, label in BATCHES:
        size = 0.5 / math.sqrt(math.prod(shape[1:]) / 2)
        x, y, h = size * draw(*shape), size * draw(*shape), 0.1 + 0.05 * seed
        there, back = (
            torch.distributions.Normal(a + h * target.score(a), math.sqrt(2 * h)).log_prob(b)
            for a, b in ((x, y), (y, x))
        )
        right = target(y) - target(x) + _sum(back) - _sum(there)
        args = (target, target.score, x.to(dtype), y.to(dtype), h)
        yield Case(label, args, right.to(dtype), 1e-3 if dtype == torch.float32 else None)


def _accepted(
    sum_: Callable[..., Tensor] = lambda px, py, there, back: py - px + back - there,
    drift: Callable[..., Tensor] = lambda s, h: h * s,
    variance: Callable[[float], float] = lambda h: 2 * h,
    over: Callable[[Tensor], Tensor] = _sum,
    turn: bool = True,
) -> Callable[..., Tensor]:
    """log_acceptance with another sum, proposal or variance, or with the way back from x."""

    def wrong(log_prob: Any, score: Any, x: Tensor, y: Tensor, h: float) -> Tensor:
        there = -over((y - x - drift(score(x), h)).square()) / (2 * variance(h))
        back = -over((x - y - drift(score(y if turn else x), h)).square()) / (2 * variance(h))
        return sum_(log_prob(x), log_prob(y), there, back)

    return wrong


log_acceptance = Checker(
    chapter="composition",
    name="log_acceptance",
    title="Accept or reject",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=_acceptance_cases,
    mistakes=(
        Mistake(
            "only the densities are compared. A Langevin step is no symmetric proposal: going back "
            "has another probability than going there.",
            _accepted(lambda px, py, there, back: py - px),
        ),
        Mistake(
            "the densities of x and x' are exchanged.",
            _accepted(lambda px, py, there, back: px - py + back - there),
        ),
        Mistake(
            "the proposals are exchanged: the way back stands above.",
            _accepted(lambda px, py, there, back: py - px + there - back),
        ),
        Mistake(
            "all is the other way round: this is the ratio of x to x'.",
            _accepted(lambda px, py, there, back: px - py + there - back),
        ),
        Mistake(
            "the proposal has variance 2 h, and the exponent of a normal density twice the "
            "variance below: 4 h. Here it has half of it.",
            _accepted(variance=lambda h: h),
        ),
        Mistake(
            "the drift is half of that of the step, which is h times the score.",
            _accepted(drift=lambda s, h: h / 2 * s),
        ),
        Mistake(
            "the density of the proposal alone is compared. The target is missing.",
            _accepted(lambda px, py, there, back: back - there),
        ),
        Mistake(
            "the way back is missing, k(x | x').",
            _accepted(lambda px, py, there, back: py - px - there),
        ),
        Mistake(
            "the way there is missing, k(x' | x).",
            _accepted(lambda px, py, there, back: py - px + back),
        ),
        Mistake(
            "the way back takes the score at x. It starts at x', and takes the score there.",
            _accepted(turn=False),
        ),
        Mistake(
            "the mean over coordinates is taken. The exponent of a normal density has the sum.",
            _accepted(over=lambda x: x.reshape(len(x), -1).mean(1)),
        ),
        Mistake(
            "the squares are summed over one axis only. Samples may be images: sum over all axes "
            "but the first.",
            _accepted(over=lambda x: x.sum(-1)),
        ),
        Mistake(
            "the ratio is cut at 1, as the probability is. The logarithm of the ratio itself is "
            "asked for.",
            lambda *args: _accepted()(*args).clamp(max=0),
        ),
        Mistake(
            "this is the probability of acceptance. The logarithm of the ratio is asked for.",
            lambda *args: _accepted()(*args).exp().clamp(max=1),
        ),
        Mistake(
            "this is the ratio. Its logarithm is asked for.",
            lambda *args: _accepted()(*args).exp(),
        ),
    ),
)

# 5 mixture_score


def _mixture_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(BATCHES):
        E = 2 + i
        scores, log_probs = draw(E, *shape), draw(E, shape[0]) - 2
        w = draw(E).softmax(0)
        joint = w[:, None] * log_probs.exp()
        shares = joint / joint.sum(0)
        right = sum(per_sample(shares[e], scores[e]) * scores[e] for e in range(E))
        args = tuple(v.to(dtype) for v in (scores, log_probs, w))
        yield Case(label, args, torch.as_tensor(right).to(dtype))
    far = torch.tensor([[-2000.0, -2100.0], [-2001.0, -2050.0]]).double()
    scores, half = draw(2, 2, 2), torch.tensor([0.5, 0.5]).double()
    near = 1 / (1 + math.exp(-1))
    shares = torch.tensor([[near, 0.0], [1 - near, 1.0]], dtype=torch.float64)
    right = (shares[:, :, None] * scores).sum(0)
    yield Case("far out, where densities underflow", (scores, far, half), right)


def _mixed(
    shares: Callable[[Tensor, Tensor], Tensor] = lambda p, w: (p + w.log()[:, None]).softmax(0),
    axes: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """mixture_score with other shares of the models."""

    def wrong(scores: Tensor, log_probs: Tensor, w: Tensor) -> Tensor:
        r = shares(log_probs, w)
        r = r.reshape(*r.shape, *[1] * (scores.ndim - 2)) if axes is None else axes(r, scores)
        return (r * scores).sum(0)

    return wrong


mixture_score = Checker(
    chapter="composition",
    name="mixture_score",
    title="OR is not an average",
    kind="bug",
    difficulty=1,
    minutes=15,
    cases=_mixture_cases,
    mistakes=(
        Mistake(
            "the scores are averaged with fixed weights. That is a product of powers. Each score "
            "counts with the probability that x came from its model.",
            _mixed(lambda p, w: w[:, None].expand_as(p)),
        ),
        Mistake(
            "the weights of the models are missing in the probabilities.",
            _mixed(lambda p, w: p.softmax(0)),
        ),
        Mistake(
            "the weights are added to log-densities. Their logarithms are.",
            _mixed(lambda p, w: (p + w[:, None]).softmax(0)),
        ),
        Mistake(
            "the weights multiply probabilities that were normalised before. Multiply first.",
            _mixed(lambda p, w: w[:, None] * p.softmax(0)),
        ),
        Mistake(
            "the probabilities sum to one over the samples. They must over the models.",
            _mixed(lambda p, w: (p + w.log()[:, None]).softmax(1)),
        ),
        Mistake(
            "densities underflow to 0 far out, and 0 / 0 is left. Stay with logarithms.",
            _mixed(lambda p, w: w[:, None] * p.exp() / (w[:, None] * p.exp()).sum(0, keepdim=True)),
        ),
        Mistake(
            "the logarithms of the densities are taken for the densities.",
            _mixed(lambda p, w: w[:, None] * p / (w[:, None] * p).sum(0)),
        ),
        Mistake(
            "the likeliest model alone counts. Near the middle several have a say.",
            _mixed(lambda p, w: (1e9 * (p + w.log()[:, None])).softmax(0)),
        ),
        Mistake(
            "the scores are weighted by densities that are not normalised.",
            _mixed(lambda p, w: w[:, None] * p.exp()),
        ),
    ),
)

# 6 weight_rate


def _rate_cases(seed: int) -> Iterator[Case]:
    """By pairs: |s|^2 - sum_i w_i |s_i|^2 = sum_ij w_i (w_j - [i = j]) s_i . s_j."""
    draw = normal(seed)
    for (shape, dtype, label), powers in zip(BATCHES, ((1, 1), (2, -1), (1, 0.5, 2)), strict=True):
        w, g2 = torch.tensor(powers).double(), 0.5 + draw(shape[0]).sigmoid()
        scores = draw(len(w), *shape)
        right = torch.zeros(shape[0]).double()
        for i in range(len(w)):
            for j in range(len(w)):
                right += w[i] * (w[j] - float(i == j)) * _sum(scores[i] * scores[j])
        args = tuple(v.to(dtype) for v in (scores, w, g2))
        yield Case(f"powers {powers}; {label}", args, (g2 / 2 * right).to(dtype))


def _rate(
    gain: Callable[[Tensor, Tensor], Tensor] = lambda total, each: total - each,
    factor: Callable[[Tensor], Any] = lambda g2: g2 / 2,
    power: int = 1,
    over: Callable[[Tensor], Tensor] = _sum,
) -> Callable[..., Tensor]:
    """weight_rate with another difference, another factor, or other powers."""

    def wrong(scores: Tensor, w: Tensor, g2: Tensor) -> Tensor:
        total = over(torch.tensordot(w, scores, 1).square())
        each = sum(w[i] ** power * over(s.square()) for i, s in enumerate(scores))
        return factor(g2) * gain(total, torch.as_tensor(each))

    return wrong


weight_rate = Checker(
    chapter="composition",
    name="weight_rate",
    title="What a particle gains",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_rate_cases,
    mistakes=(
        Mistake("the factor g^2 is there, its half is right.", _rate(factor=lambda g2: g2)),
        Mistake("the factor g^2 / 2 is missing.", _rate(factor=lambda g2: 1)),
        Mistake(
            "g2 is the square already. Here it is squared again.",
            _rate(factor=lambda g2: g2**2 / 2),
        ),
        Mistake(
            "the sign is wrong. Particles gain where two models agree.",
            _rate(lambda total, each: each - total),
        ),
        Mistake(
            "the squares of the single scores have the squares of the powers in front. It is the "
            "powers themselves.",
            _rate(power=2),
        ),
        Mistake(
            "the single scores are not subtracted.",
            _rate(lambda total, each: total),
        ),
        Mistake(
            "the squares of the single scores are added. They are subtracted.",
            _rate(lambda total, each: total + each),
        ),
        Mistake(
            "the powers are missing in the sum of squares: all models count once.",
            _rate(power=0),
        ),
        Mistake(
            "the powers are missing everywhere: all models count once.",
            lambda scores, w, g2: _rate()(scores, torch.ones_like(w), g2),
        ),
        Mistake(
            "this is the rate for two models with power 1. Here there are any powers, and more "
            "models.",
            lambda scores, w, g2: g2 * _sum(scores[0] * scores[1]),
        ),
        Mistake(
            "the squares are summed over one axis only. Particles may be images: sum over all "
            "axes but the first.",
            _rate(over=lambda x: x.sum(-1)),
        ),
        Mistake(
            "the mean over coordinates is taken. A squared norm is a sum.",
            _rate(over=lambda x: x.reshape(len(x), -1).mean(1)),
        ),
    ),
)

# 7 systematic


def _resampling_cases(seed: int) -> Iterator[Case]:
    """Every particle is counted: how many of the N marks fall into its piece of [0, 1]."""
    draw = normal(seed)
    for log_w, u, label in (
        (draw(8), 0.3 + 0.05 * (seed % 10), "eight particles"),
        (3 * draw(50), 0.7, "fifty particles with very unlike weights"),
        (torch.zeros(5).double(), 0.5, "equal weights"),
        (draw(6) - 2000, 0.2, "weights that underflow"),
    ):
        parts = [math.exp(v) for v in (log_w - log_w.max()).tolist()]
        ends, N = [0.0], len(parts)
        for part in parts:
            ends.append(ends[-1] + part / math.fsum(parts))
        marks = [(k + u) / N for k in range(N)]
        kept = [n for n in range(N) for mark in marks if ends[n] < mark <= ends[n + 1]]
        yield Case(label, (log_w, u), torch.tensor(kept))


def _resampled(
    weights: Callable[[Tensor], Tensor] = lambda log_w: log_w.softmax(0),
    marks: Callable[[int, float], Tensor] = lambda N, u: (torch.arange(N).double() + u) / N,
    ends: Callable[[Tensor], Tensor] = lambda w: w.cumsum(0),
    result: Callable[[Tensor], Tensor] = lambda kept: kept,
) -> Callable[..., Tensor]:
    """systematic with other weights, other marks, or other pieces."""

    def wrong(log_w: Tensor, u: float) -> Tensor:
        N, at = len(log_w), ends(weights(log_w).double())
        return result(torch.searchsorted(at, marks(N, u)).clamp(max=N - 1))

    return wrong


systematic = Checker(
    chapter="composition",
    name="systematic",
    title="Systematic resampling",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=with_single(_resampling_cases),
    mistakes=(
        Mistake(
            "the weights were not normalised, so their pieces do not fill [0, 1].",
            _resampled(lambda log_w: log_w.exp()),
        ),
        Mistake(
            "the logarithms are taken for the weights.",
            _resampled(
                lambda log_w: (log_w - log_w.min()) / (log_w - log_w.min()).sum().clamp(1e-9)
            ),
        ),
        Mistake(
            "the marks begin at 0. All of them are shifted by u / N.",
            _resampled(marks=lambda N, u: torch.arange(N).double() / N),
        ),
        Mistake(
            "u shifts the marks by its whole length here. It has to be divided by N as well.",
            _resampled(marks=lambda N, u: torch.arange(N).double() / N + u),
        ),
        Mistake(
            "weights that underflow are all 0 after `exp`, and 0 / 0 is left. Subtract the largest "
            "logarithm first.",
            _resampled(lambda log_w: log_w.exp() / log_w.exp().sum()),
        ),
        Mistake(
            "the marks are one piece too far: k begins at 0.",
            _resampled(marks=lambda N, u: (torch.arange(N).double() + 1 + u) / N),
        ),
        Mistake(
            "the numbers begin at 1 here. They are indices, and begin at 0.",
            _resampled(result=lambda kept: kept + 1),
        ),
        Mistake(
            "each particle gets the piece of the one before it.",
            _resampled(ends=lambda w: w.cumsum(0) - w),
        ),
        Mistake(
            "these are how often each particle is kept. Its number is asked for, as often as it "
            "is kept.",
            _resampled(result=lambda kept: kept.bincount(minlength=len(kept))),
        ),
        Mistake(
            "particles are kept once at most. Those with much weight are kept several times.",
            _resampled(result=lambda kept: kept.unique()),
        ),
    ),
)

# 8 walks_experiment

GUESSES = ("ODE", "SDE", "Langevin")
LENGTH = 4.0  # B, the integral of beta
Spread = tuple[str, dict[str, Tensor]]


class _Summed:
    """The summed score of models N(0, 1) whose powers sum to w."""

    def __init__(self, w: float) -> None:
        self.w = w

    def __call__(self, x: Tensor) -> Tensor:
        return -self.w * x


def _spread_cases(seed: int) -> Iterator[Case]:
    """All walks are linear, so the factors of every noise can be multiplied out."""
    draw = normal(seed)
    for w, steps in ((2.0, 50), (3.0, 40)):
        eps, z = draw(2000), draw(steps, 2000)
        h = LENGTH / steps
        ode = eps * (1 + h / 2 - h / 2 * w) ** steps
        found = {"ODE": ode}
        for name, rate, size in (("SDE", h / 2 - h * w, h), ("Langevin", -h * w, 2 * h)):
            powers = (1 + rate) ** torch.arange(steps - 1, -1, -1).double()
            found[name] = eps * (1 + rate) ** steps + math.sqrt(size) * (powers @ z)
        answer = (frozenset(GUESSES), {k: v.var(correction=0) for k, v in found.items()})
        yield Case(
            f"powers that sum to {w:g}", (_Summed(w), eps, z, LENGTH), answer, tolerance=1e-6
        )


def _spread(
    ode: Callable[..., Tensor] = lambda x, s, h: x + h / 2 * (x + s),
    sde: Callable[..., Tensor] = lambda x, s, h, z: x + h * (x / 2 + s) + math.sqrt(h) * z,
    langevin: Callable[..., Tensor] = lambda x, s, h, z: x + h * s + math.sqrt(2 * h) * z,
    measure: Callable[[Tensor], Tensor] = lambda x: x.var(correction=0),
) -> Callable[..., Spread]:
    """walks_experiment with another step of one of the walks, or another measure."""

    def wrong(score: Any, eps: Tensor, z: Tensor, B: float) -> Spread:
        h, walks = B / len(z), dict.fromkeys(GUESSES, eps)
        for noise in z:
            a, b, c = (walks[name] for name in GUESSES)
            walks["ODE"] = ode(a, score(a), h)
            walks["SDE"] = sde(b, score(b), h, noise)
            walks["Langevin"] = langevin(c, score(c), h, noise)
        return GUESSES[2], {name: measure(x) for name, x in walks.items()}

    return wrong


def _spread_remark(value: Spread) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, found = value
    verb = foretold(prediction, "Langevin")
    numbers = ", ".join(f"{name} {v.item():.2f}" for name, v in found.items())
    return f"the product has variance 0.50. Measured: {numbers}. Langevin comes nearest ({verb})."


walks_experiment = Checker(
    chapter="composition",
    name="walks_experiment",
    title="Three walks with one summed score",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_spread_cases,
    mistakes=(
        Mistake(
            "these are standard deviations. The variance is asked for.",
            _spread(measure=lambda x: x.std(correction=0)),
        ),
        Mistake(
            "the variance divides by N - 1 here. Divide by N.", _spread(measure=lambda x: x.var())
        ),
        Mistake(
            "the ODE has the whole score in it. It takes half of it.",
            _spread(ode=lambda x, s, h: x + h / 2 * x + h * s),
        ),
        Mistake(
            "the ODE lacks the forward drift, x / 2.",
            _spread(ode=lambda x, s, h: x + h / 2 * s),
        ),
        Mistake(
            "the SDE has half of the score only. Noise is paid for with the other half.",
            _spread(sde=lambda x, s, h, z: x + h / 2 * (x + s) + math.sqrt(h) * z),
        ),
        Mistake(
            "the SDE lacks the forward drift, x / 2.",
            _spread(sde=lambda x, s, h, z: x + h * s + math.sqrt(h) * z),
        ),
        Mistake(
            "the forward drift of the SDE has the wrong sign: time runs backwards.",
            _spread(sde=lambda x, s, h, z: x + h * (s - x / 2) + math.sqrt(h) * z),
        ),
        Mistake(
            "the noise of the SDE has variance h, not 2 h.",
            _spread(sde=lambda x, s, h, z: x + h * (x / 2 + s) + math.sqrt(2 * h) * z),
        ),
        Mistake(
            "the noise of Langevin dynamics has variance 2 h.",
            _spread(langevin=lambda x, s, h, z: x + h * s + math.sqrt(h) * z),
        ),
        Mistake(
            "the forward drift has no place in Langevin dynamics, which stays at one time.",
            _spread(langevin=lambda x, s, h, z: x + h * (x / 2 + s) + math.sqrt(2 * h) * z),
        ),
        Mistake(
            "the noise of Langevin dynamics is multiplied by the step. Its root is right.",
            _spread(langevin=lambda x, s, h, z: x + h * s + 2 * h * z),
        ),
        Mistake(
            "the steps have length 1 / K. The whole way has length B.",
            lambda score, eps, z, B: _spread()(score, eps, z, 1.0),
        ),
        Mistake(
            "these are second moments. From the variance the square of the mean is subtracted.",
            _spread(measure=lambda x: x.square().mean()),
        ),
    ),
    remark=_spread_remark,
)

CHECKERS = (
    product_gaussian,
    summed_variances,
    product_data,
    log_acceptance,
    mixture_score,
    weight_rate,
    systematic,
    walks_experiment,
)
