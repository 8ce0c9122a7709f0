"""Checks of the exercises on flow matching.

Right answers come from the exact mixture, from the paths' own derivatives, and from quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import (
    IMAGES,
    SHAPES,
    foretold,
    normal,
    per_sample,
    weight,
    with_single,
)
from course_lib.denoisers import GaussianMixture
from course_lib.paths import VP, CosineVP, Linear, Path

__all__ = ["CHECKERS"]

# 1 flow_matching_loss


def _loss_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in SHAPES[:2]:
        x0, x1 = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        t = ((torch.arange(shape[0]) + 0.3 + 0.1 * seed) / (shape[0] + 1)).to(dtype)
        path = Linear()
        for name, predict in (("its input", _soft), ("the time", _timed)):
            error = predict(path.sample(x0, t, x1), t) - path.velocity(x0, x1, t)
            right = error.square().sum() / x0.numel()
            yield Case(f"{label}; a network that uses {name}", (predict, x0, x1, t), right)


def _soft(xt: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(weight(0.7, xt) * xt) + 0.1


def _timed(xt: Tensor, t: Tensor) -> Tensor:
    if t.shape != xt.shape[:1]:
        raise ValueError(f"the network wants one time for each sample; got {tuple(t.shape)}")
    return weight(0.5, xt) * xt + per_sample(t, xt)


def _loss(error: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """flow_matching_loss with another error, a function of (predict, x0, x1, t, t as a factor)."""

    def wrong(predict: Any, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        return error(predict, x0, x1, t, per_sample(t, x0))

    return wrong


flow_matching_loss = Checker(
    chapter="flow_matching",
    name="flow_matching_loss",
    title="The loss of a rectified flow",
    kind="implementation",
    difficulty=1,
    minutes=5,
    cases=_loss_cases,
    mistakes=(
        Mistake(
            "time runs the other way here: t = 0 is data. In much of the literature it is noise.",
            _loss(
                lambda f, x0, x1, t, w: (f(w * x0 + (1 - w) * x1, t) - (x1 - x0)).square().mean()
            ),
        ),
        Mistake(
            "the target has the wrong sign: the velocity is dx_t/dt, and t grows towards noise.",
            _loss(
                lambda f, x0, x1, t, w: (f((1 - w) * x0 + w * x1, t) - (x0 - x1)).square().mean()
            ),
        ),
        Mistake(
            "time and target both follow the other convention, in which t = 0 is noise. The two "
            "fit together, but not with the solvers of this course.",
            _loss(
                lambda f, x0, x1, t, w: (f(w * x0 + (1 - w) * x1, t) - (x0 - x1)).square().mean()
            ),
        ),
        Mistake(
            "the target is the noise, as in DDPM. A flow predicts the velocity x_1 - x_0.",
            _loss(lambda f, x0, x1, t, w: (f((1 - w) * x0 + w * x1, t) - x1).square().mean()),
        ),
        Mistake(
            "the target is the data. A flow predicts the velocity x_1 - x_0.",
            _loss(lambda f, x0, x1, t, w: (f((1 - w) * x0 + w * x1, t) - x0).square().mean()),
        ),
        Mistake(
            "the target is what is left of the way, x_1 - x_t. The speed is that of the whole way.",
            _loss(
                lambda f, x0, x1, t, w: (
                    (f((1 - w) * x0 + w * x1, t) - (1 - w) * (x1 - x0)).square().mean()
                )
            ),
        ),
        Mistake(
            "the weights have roots, as on a variance-preserving path. On the straight line they "
            "are 1 - t and t themselves.",
            _loss(
                lambda f, x0, x1, t, w: (
                    (f((1 - w).sqrt() * x0 + w.sqrt() * x1, t) - (x1 - x0)).square().mean()
                )
            ),
        ),
        Mistake(
            "the network is asked at the time 1 - t; x_t is at the time t.",
            _loss(
                lambda f, x0, x1, t, w: (
                    (f((1 - w) * x0 + w * x1, 1 - t) - (x1 - x0)).square().mean()
                )
            ),
        ),
        Mistake(
            "the coordinates are summed. Take the mean over batch and coordinates.",
            _loss(
                lambda f, x0, x1, t, w: (
                    (f((1 - w) * x0 + w * x1, t) - (x1 - x0)).square().sum() / len(x0)
                )
            ),
        ),
        Mistake(
            "a root is taken at the end: the loss is the mean of the squares itself.",
            _loss(
                lambda f, x0, x1, t, w: (
                    (f((1 - w) * x0 + w * x1, t) - (x1 - x0)).square().mean().sqrt()
                )
            ),
        ),
        Mistake(
            "this is a sum. Take the mean over batch and coordinates.",
            _loss(lambda f, x0, x1, t, w: (f((1 - w) * x0 + w * x1, t) - (x1 - x0)).square().sum()),
        ),
        Mistake(
            "t has shape (B,): give it as many further axes of length 1 as x0 has, before it "
            "multiplies x0.",
            _loss(
                lambda f, x0, x1, t, w: (f((1 - t) * x0 + t * x1, t) - (x1 - x0)).square().mean()
            ),
        ),
    ),
)

# 2 marginal_velocity


def _velocity_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i in range(2):
        t = torch.tensor((0.15, 0.5, 0.85)[(seed + i) % 3], dtype=torch.float64)
        mean, std, x = 1.5 * draw(1)[0], 0.3 + draw(1)[0].abs(), 2 * draw(6)
        one = torch.ones(1, dtype=torch.float64)
        exact = GaussianMixture(mean.reshape(1, 1), std.square().reshape(1, 1, 1), one, Linear())
        right = exact.velocity(x[:, None], t.expand(6))[:, 0]
        label = f"t = {t:.2f}, data N({mean:.2f}, {std:.2f}^2)"
        yield Case(label, (x, t, mean, std), right)


def _velocity_of(x: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    x0, x1 = _guesses(x, t, mean, std)
    return x1 - x0


def _regression(
    covariance: Callable[..., Tensor],
    variance: Callable[..., Tensor],
    centre: Callable[..., Any] = lambda t, mean: (1 - t) * mean,
    start: int = -1,
) -> Callable[..., Tensor]:
    """marginal_velocity by the rule for normal variables, with other moments of x_t."""

    def wrong(x: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        slope = covariance(t, std) / variance(t, std)
        return start * mean + slope * (x - centre(t, mean))

    return wrong


def _cov(t: Tensor, std: Tensor) -> Tensor:
    return t - (1 - t) * std**2


def _var(t: Tensor, std: Tensor) -> Tensor:
    return (1 - t) ** 2 * std**2 + t**2


def _guesses(x: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t] and E[x_1 | x_t] on the straight path."""
    z = (x - (1 - t) * mean) / ((1 - t) ** 2 * std**2 + t**2)
    return mean + (1 - t) * std**2 * z, t * z


marginal_velocity = Checker(
    chapter="flow_matching",
    name="marginal_velocity",
    title="The velocity of a Gaussian",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=with_single(_velocity_cases),
    mistakes=(
        Mistake(
            "the sign is wrong: the velocity points from data to noise, as t grows.",
            lambda *a: -_velocity_of(*a),
        ),
        Mistake(
            "this is the velocity of the one line that starts at the mean of the data. Average "
            "over all clean samples that could have led to x.",
            lambda x, t, m, d: (x - m) / t,
        ),
        Mistake(
            "this is the best guess of the noise alone; take away the best guess of the data.",
            lambda *a: _guesses(*a)[1],
        ),
        Mistake(
            "this is the best guess of the data; the velocity is the noise minus the data.",
            lambda *a: _guesses(*a)[0],
        ),
        Mistake(
            "this is right for data of standard deviation 1 only.",
            lambda x, t, m, d: _velocity_of(x, t, m, torch.ones_like(d)),
        ),
        Mistake(
            "t and 1 - t are exchanged: t = 0 is data.",
            lambda x, t, m, d: _velocity_of(x, 1 - t, m, d),
        ),
        Mistake(
            "the rule starts at the mean of what is guessed: E[x_1 - x_0] = -m is missing.",
            _regression(_cov, _var, start=0),
        ),
        Mistake(
            "the mean of x_t was not taken away from x.",
            _regression(_cov, _var, lambda t, mean: 0),
        ),
        Mistake(
            "the mean of x_t is (1 - t) m, not m.",
            _regression(_cov, _var, lambda t, mean: mean),
        ),
        Mistake(
            "the sign in the covariance is wrong: x_0 enters x_1 - x_0 with a minus.",
            _regression(lambda t, d: t + (1 - t) * d**2, _var),
        ),
        Mistake(
            "the covariance of x_1 alone is missing: it is t.",
            _regression(lambda t, d: -(1 - t) * d**2, _var),
        ),
        Mistake(
            "s is the standard deviation: its square is the variance of the data.",
            _regression(lambda t, d: t - (1 - t) * d, lambda t, d: (1 - t) ** 2 * d + t**2),
        ),
        Mistake(
            "a factor enters a variance squared: that of x_t is not (1 - t) s^2 + t.",
            _regression(_cov, lambda t, d: (1 - t) * d**2 + t),
        ),
        Mistake(
            "of independent variables the variances add, not the standard deviations.",
            _regression(_cov, lambda t, d: ((1 - t) * d + t) ** 2),
        ),
    ),
)

# 3 velocity_to_score


def _score_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5]], dtype=torch.float64)
    covs = 0.2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    exact = GaussianMixture(means, covs, weights, Linear())
    for b, label in ((2, "as many samples as coordinates"), (5, "five points")):
        x = 2 * draw(b, 2)
        t = (torch.arange(b, dtype=torch.float64) + 0.5 + 0.1 * seed) / (b + 1)
        yield Case(label, (exact.velocity(x, t), x, t), exact.score(x, t))
    x, t = draw(*IMAGES), torch.tensor([0.2, 0.7], dtype=torch.float64)
    scaled = x / per_sample((1 - t) ** 2 + t**2, x)  # data N(0, I)
    yield Case("images", (per_sample(2 * t - 1, x) * scaled, x, t), -scaled)


def _score(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda v, xt, t: formula(v, xt, per_sample(t, xt))


velocity_to_score = Checker(
    chapter="flow_matching",
    name="velocity_to_score",
    title="The score out of the velocity",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_score_cases),
    mistakes=(
        Mistake(
            "this is the formula of the literature in which t = 1 is data.",
            _score(lambda v, x, t: (t * v - x) / (1 - t)),
        ),
        Mistake(
            "this is the best guess of the noise. The score is that, divided by -t.",
            _score(lambda v, x, t: x + (1 - t) * v),
        ),
        Mistake(
            "the sign of the score is wrong: it points away from the noise.",
            _score(lambda v, x, t: (x + (1 - t) * v) / t),
        ),
        Mistake(
            "the sign of the velocity is wrong: v = x_1 - x_0, and x_1 is the noise.",
            _score(lambda v, x, t: -(x - (1 - t) * v) / t),
        ),
        Mistake(
            "t squared where t belongs: the score is -E[eps | x] / sigma, and sigma = t.",
            _score(lambda v, x, t: -(x + (1 - t) * v) / t**2),
        ),
        Mistake(
            "t and 1 - t are exchanged: from x_t to the noise the time left is 1 - t.",
            _score(lambda v, x, t: -(x + t * v) / t),
        ),
        Mistake(
            "x_t - t v is the best guess of the data. The score needs that of the noise.",
            _score(lambda v, x, t: -(x - t * v) / t),
        ),
        Mistake(
            "only a part is divided by t: it divides the whole guess of the noise.",
            _score(lambda v, x, t: -(x + (1 - t) * v / t)),
        ),
        Mistake(
            "divide by sigma, which is t; 1 - t is alpha.",
            _score(lambda v, x, t: -(x + (1 - t) * v) / (1 - t)),
        ),
        Mistake(
            "this is minus the best guess of the noise; the division by t is missing.",
            _score(lambda v, x, t: -(x + (1 - t) * v)),
        ),
        Mistake(
            "t has shape (B,): give it as many further axes of length 1 as x has.",
            lambda v, x, t: -(x + (1 - t) * v) / t,
        ),
    ),
)

# 4 euler_sample


def _euler_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for steps, label in ((1, "one step"), (5, "five steps of different length")):
        ts = (torch.linspace(1, 0, steps + 1, dtype=torch.float64)) ** 1.5
        for shape in ((4, 2), (3, 1, 4, 4)):
            x = right = draw(*shape)
            for i in range(steps):
                now = ts[i].expand(shape[0])
                right = right - (ts[i] - ts[i + 1]) * _field(right, now)
            yield Case(f"{label}, samples of shape {shape[1:]}", (_field, x, ts), right)


def _field(x: Tensor, t: Tensor) -> Tensor:
    """A velocity that needs its time of shape (B,)."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"the network wants one time for each sample; got {tuple(t.shape)}")
    return torch.sin(x) + per_sample(t, x) * (1 + x)


def _walk(
    step: Callable[[Tensor, Tensor], Tensor | int], at: int = 0, skip: int = 0
) -> Callable[..., Tensor]:
    """euler_sample with another step length, or the time of the other end."""

    def wrong(velocity: Any, x: Tensor, ts: Tensor) -> Tensor:
        for i in range(len(ts) - 1 - skip):
            x = x + step(ts[i], ts[i + 1]) * velocity(x, ts[i + at].expand(len(x)))
        return x

    return wrong


def _walk_up(velocity: Any, x: Tensor, ts: Tensor) -> Tensor:
    return _walk(lambda t, s: s - t)(velocity, x, ts.flip(0))


def _walk_equal(velocity: Any, x: Tensor, ts: Tensor) -> Tensor:
    h = 1 / (len(ts) - 1)
    for t in ts[:-1]:
        x = x - h * velocity(x, t.expand(len(x)))
    return x


def _walk_once(velocity: Any, x: Tensor, ts: Tensor) -> Tensor:
    return _walk(lambda t, s: s - t)(velocity, x, ts[:2])


def _other_clock(velocity: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: velocity(x, 1 - t)


euler_sample = Checker(
    chapter="flow_matching",
    name="euler_sample",
    title="Sampling in three lines",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=with_single(_euler_cases),
    mistakes=(
        Mistake(
            "you walk against the flow: going down in time, the step s - t is negative.",
            _walk(lambda t, s: t - s),
        ),
        Mistake(
            "the velocity is taken at the end of the step; Euler's method takes that at its start.",
            _walk(lambda t, s: s - t, at=1),
        ),
        Mistake("you walk from t = 0 to t = 1. Samples start as noise, at t = 1.", _walk_up),
        Mistake(
            "the last step is missing: a grid of n times has n - 1 steps, and `range` already "
            "leaves its end out.",
            _walk(lambda t, s: s - t, skip=1),
        ),
        Mistake(
            "all steps are taken as equally long. The grid says where each begins and ends.",
            _walk_equal,
        ),
        Mistake(
            "the velocity is not multiplied by the length of the step.",
            _walk(lambda t, s: -1),
        ),
        Mistake(
            "every step starts at the noise. It must start where the last one ended.",
            lambda f, x, ts: x + (ts[-1] - ts[-2]) * f(x, ts[-2].expand(len(x))),
        ),
        Mistake(
            "only the first step is taken. Does the function return inside of the loop?",
            _walk_once,
        ),
        Mistake(
            "the velocity is asked at the time 1 - t, as if it came from the literature.",
            lambda f, x, ts: _walk(lambda t, s: s - t)(_other_clock(f), x, ts),
        ),
        Mistake(
            "time and step both follow the other convention, in which t = 0 is noise. This "
            "velocity has the time and the sign of the course.",
            lambda f, x, ts: _walk(lambda t, s: t - s)(_other_clock(f), x, ts),
        ),
    ),
)

# 5 sde_step


def _sde_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for gamma, shape in ((0.0, (4, 3)), (0.7, IMAGES), (1.5, (5,))):
        x, v, score, z = (draw(*shape) for _ in range(4))
        t, s = torch.tensor([0.6 + 0.05 * seed, 0.55], dtype=torch.float64)
        # Forward in time, dx = (v + gamma^2/2 score) dt + gamma dw has the marginals of the flow;
        # its reversal (Anderson, 1982) takes gamma^2 score away from that drift.
        drift = v + gamma**2 / 2 * score - gamma**2 * score
        right = x + (s - t) * drift + gamma * (t - s).sqrt() * z
        label = f"noise level gamma = {gamma}" if gamma else "no noise: the step of the ODE"
        yield Case(label, (x, t, s, v, score, gamma, z), right)


def _sde(
    drift: Callable[..., Tensor] = lambda v, score, gamma: v - gamma**2 / 2 * score,
    noise: Callable[..., Any] = lambda gamma, h: gamma * h.sqrt(),
    sign: int = -1,
) -> Callable[..., Tensor]:
    """sde_step with another drift (of v, score, gamma), or factor of z (of gamma, h)."""

    def wrong(
        x: Tensor, t: Tensor, s: Tensor, v: Tensor, score: Tensor, gamma: float, z: Tensor
    ) -> Tensor:
        h = t - s
        return x + sign * h * drift(v, score, gamma) + noise(gamma, h) * z

    return wrong


def _score_at_once(
    x: Tensor, t: Tensor, s: Tensor, v: Tensor, score: Tensor, gamma: float, z: Tensor
) -> Tensor:
    """sde_step with a score term that the length of the step does not multiply."""
    return x + (s - t) * v + gamma**2 / 2 * score + gamma * (t - s).sqrt() * z


sde_step = Checker(
    chapter="flow_matching",
    name="sde_step",
    title="As much noise as you like",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=with_single(_sde_cases),
    mistakes=(
        Mistake(
            "noise is added, but the drift is still that of the ODE: samples get too wide. What "
            "the noise spreads, the score must gather.",
            _sde(lambda v, score, gamma: v),
        ),
        Mistake(
            "the sign of the score is wrong. You walk down in time: this pushes samples apart.",
            _sde(lambda v, score, gamma: v + gamma**2 / 2 * score),
        ),
        Mistake(
            "the half is missing. The full square of the noise level goes with the drift f of the "
            "forward SDE; the velocity already holds half of it.",
            _sde(lambda v, score, gamma: v - gamma**2 * score),
        ),
        Mistake(
            "the half is missing, and the sign of the score is wrong.",
            _sde(lambda v, score, gamma: v + gamma**2 * score),
        ),
        Mistake(
            "gamma where gamma squared belongs, in the drift.",
            _sde(lambda v, score, gamma: v - gamma / 2 * score),
        ),
        Mistake(
            "the noise of a step grows with the root of its length.",
            _sde(noise=lambda gamma, h: gamma * h),
        ),
        Mistake(
            "the noise does not depend on the length of the step. Its variance is gamma^2 times "
            "that length.",
            _sde(noise=lambda gamma, h: gamma),
        ),
        Mistake(
            "gamma squared where gamma belongs, in the noise.",
            _sde(noise=lambda gamma, h: gamma**2 * h.sqrt()),
        ),
        Mistake(
            "the drift is right, but the noise is missing: samples get too narrow.",
            _sde(noise=lambda gamma, h: 0),
        ),
        Mistake(
            "this takes the root of s - t, which is negative. The variance of the noise is gamma^2 "
            "times the length of the step, t - s.",
            _sde(noise=lambda gamma, h: gamma * (-h).sqrt()),
        ),
        Mistake(
            "the noise enters with a minus. That makes samples just as good, but not those of z.",
            _sde(noise=lambda gamma, h: -gamma * h.sqrt()),
        ),
        Mistake(
            "you walk up in time: the drift takes the step s - t, which is negative.",
            _sde(sign=1),
        ),
        Mistake(
            "the term with the score is part of the drift: the length of the step multiplies it.",
            _score_at_once,
        ),
    ),
)

# 6 to_straight_path


def _straight_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    paths: tuple[tuple[Path, int, str], ...]
    paths = (VP(), 2, "VP path"), (CosineVP(), 4, "cosine path")  # as many as samples
    for path, d, name in paths:
        x = draw(4, d)
        t = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64) + 0.005 * seed
        alpha, sigma = path.alpha(t), path.sigma(t)
        time = Linear().t_of_lambda(path.log_snr_half(t))
        # the straight path has alpha + sigma = 1, and both factors shrink by the same number
        scale = (1 - time) / alpha
        yield Case(f"{name}", (x, alpha, sigma), (time, scale[:, None] * x))


def _straight(time: Callable[..., Tensor], scale: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda x, a, s: (time(a, s), x * scale(a, s)[:, None])


to_straight_path = Checker(
    chapter="flow_matching",
    name="to_straight_path",
    title="One path is all paths",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_straight_cases),
    mistakes=(
        Mistake(
            "the time is right, but the scale is not: alpha x_0 + sigma eps must become "
            "(1 - t) x_0 + t eps.",
            _straight(lambda a, s: s / (a + s), lambda a, s: torch.ones_like(a)),
        ),
        Mistake(
            "multiply where you divide: the sum of the two factors must become 1.",
            _straight(lambda a, s: s / (a + s), lambda a, s: a + s),
        ),
        Mistake(
            "this time is the ratio sigma / alpha, which grows beyond 1. On the straight path the "
            "ratio is t / (1 - t).",
            _straight(lambda a, s: s / a, lambda a, s: 1 / (a + s)),
        ),
        Mistake(
            "the time runs the other way: at t = 0 there is no noise.",
            _straight(lambda a, s: a / (a + s), lambda a, s: 1 / (a + s)),
        ),
        Mistake(
            "the ratio of the squares was matched as if the straight path had alpha^2 = 1 - t.",
            _straight(lambda a, s: s**2 / (a**2 + s**2), lambda a, s: 1 / (a + s)),
        ),
        Mistake(
            "sigma itself was taken for the time. Match the ratio of noise to data instead.",
            _straight(lambda a, s: s, lambda a, s: (1 - s) / a),
        ),
        Mistake(
            "the factor is right, but sigma itself was taken for the time. What becomes of sigma "
            "when x is multiplied?",
            _straight(lambda a, s: s, lambda a, s: 1 / (a + s)),
        ),
        Mistake(
            "one minus alpha was taken for the time. Match the ratio of noise to data instead.",
            _straight(lambda a, s: 1 - a, lambda a, s: 1 / (a + s)),
        ),
        Mistake(
            "the time is right. Division by alpha alone makes x_0 + (sigma / alpha) eps, in which "
            "the factor of the data is 1, not 1 - t.",
            _straight(lambda a, s: s / (a + s), lambda a, s: 1 / a),
        ),
        Mistake(
            "these are the noise level and the sample of a path on which the data keep their "
            "scale. On the straight path both factors change, and their sum is 1.",
            _straight(lambda a, s: s / a, lambda a, s: 1 / a),
        ),
    ),
)

# 7 few_steps_experiment

PREDICTIONS = ("narrower", "as wide", "wider")
COUNTS = (1, 2, 8)


def _few_cases(seed: int) -> Iterator[Case]:
    for gap in (2.0, 1.0):
        velocity = _two_peaks(gap)
        right = {n: _spread(velocity, n, "euler") for n in COUNTS}
        label = f"two peaks at +-{gap:g}, of standard deviation 0.2"
        answer = (frozenset(PREDICTIONS), {str(n): v for n, v in right.items()})
        yield Case(label, (velocity, 20_000), answer, tolerance=0.04)


def _two_peaks(gap: float) -> Callable[[Tensor, Tensor], Tensor]:
    means = torch.tensor([[gap], [-gap]], dtype=torch.float64)
    covs, weights = torch.full((2, 1, 1), 0.04).double(), torch.full((2,), 0.5).double()
    exact = GaussianMixture(means, covs, weights, Linear())
    return lambda x, t: exact.velocity(x[:, None], t)[:, 0]


def _spread(velocity: Any, steps: int, kind: str) -> float:
    """Standard deviation after Euler steps, with the quantiles of the noise in place of draws."""
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = math.sqrt(2) * torch.erfinv(2 * u - 1)
    ts = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if kind == "up":
        ts = ts.flip(0)
    for t, s in pairwise(ts):
        at = {"end": s, "noise": ts[0]}.get(kind, t).clamp(1e-6)
        step = t - s if kind == "against" else s - t
        x = x + step * velocity(x, at.expand(len(x)))
    return (x.var() if kind == "variance" else x.std()).item()


def _few(measure: Callable[[Any, int], float]) -> Callable[..., Any]:
    return lambda velocity, samples: (
        PREDICTIONS[0],
        {str(n): measure(velocity, n) for n in COUNTS},
    )


def _few_remark(value: tuple[str, dict[str, float]]) -> str:
    """Hold the prediction for one step against the measurement; a wrong one is no failure."""
    prediction, measured = value
    truth = math.hypot(2.0, 0.2)
    verb = foretold(prediction, "narrower")
    values = ", ".join(f"{measured[str(n)]:.2f} in {n}" for n in COUNTS[1:])
    return (
        f"{measured['1']:.2f} in one step, {values}; {truth:.2f} is true. One step is narrower "
        f"({verb}): it ends at the mean of all data, wherever it starts."
    )


few_steps_experiment = Checker(
    chapter="flow_matching",
    name="few_steps_experiment",
    title="One step of a curved flow",
    kind="experiment",
    difficulty=2,
    minutes=15,
    cases=_few_cases,
    mistakes=(
        Mistake(
            "these are variances; measure standard deviations.",
            _few(lambda f, n: _spread(f, n, "variance")),
        ),
        Mistake(
            "the samples were moved from t = 0 to t = 1. Start with noise at t = 1.",
            _few(lambda f, n: _spread(f, n, "up")),
        ),
        Mistake(
            "the number of steps makes no difference in your measurement: is every value taken "
            "with its own number of steps?",
            _few(lambda f, n: _spread(f, COUNTS[-1], "euler")),
        ),
        Mistake(
            "each of these took one step too few: n steps need a grid of n + 1 times.",
            _few(lambda f, n: _spread_short(f, n)),
        ),
        Mistake(
            "you walk against the flow: going down in time, the step is negative.",
            _few(lambda f, n: _spread(f, n, "against")),
        ),
        Mistake(
            "the velocity is taken at the end of the step; Euler's method takes that at its start.",
            _few(lambda f, n: _spread(f, n, "end")),
        ),
        Mistake(
            "the velocity is asked at t = 1 in every step. The time falls along the way.",
            _few(lambda f, n: _spread(f, n, "noise")),
        ),
        Mistake(
            "all samples end in the middle, with every number of steps. Do you take n steps, and "
            "is each of them of length 1 / n?",
            _few(lambda f, n: _spread(f, 1, "euler")),
        ),
    ),
    remark=_few_remark,
)


def _spread_short(velocity: Any, steps: int) -> float:
    """What a grid of n times in place of n + 1 gives; with one time, nothing moves."""
    return _spread(velocity, steps - 1, "euler") if steps > 1 else 1.0


# 8 flow_log_density


def _density_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for d, label in ((1, "one coordinate"), (3, "three coordinates")):
        scale, shift, x = 0.4 + draw(d).abs(), draw(d), 2 * draw(5, d)
        right = torch.distributions.Normal(shift, scale).log_prob(x).sum(1)
        yield Case(label, (x, scale, shift), right)
    scale = torch.tensor([-2.0, 0.5], dtype=torch.float64)
    x, shift = draw(4, 2), draw(2)
    right = torch.distributions.Normal(shift, scale.abs()).log_prob(x).sum(1)
    yield Case("a scale may be negative", (x, scale, shift), right)


def _log_normal(z: Tensor) -> Tensor:
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1)


flow_log_density = Checker(
    chapter="flow_matching",
    name="flow_log_density",
    title="Spot the bug: the density of a flow",
    kind="bug",
    difficulty=2,
    minutes=10,
    cases=with_single(_density_cases),
    mistakes=(
        Mistake(
            "this is still the bug: x is pushed forward, away from the noise. Which z became x?",
            lambda x, a, b: _log_normal(a * x + b) + a.abs().log().sum(),
        ),
        Mistake(
            "the sign of the log-determinant is wrong: where the flow stretches, density falls.",
            lambda x, a, b: _log_normal((x - b) / a) + a.abs().log().sum(),
        ),
        Mistake(
            "the log-determinant is missing: this density does not integrate to one.",
            lambda x, a, b: _log_normal((x - b) / a),
        ),
        Mistake(
            "x is still pushed forward; only the sign of the log-determinant has changed.",
            lambda x, a, b: _log_normal(a * x + b) - a.abs().log().sum(),
        ),
        Mistake(
            "the determinant is a volume: take the absolute value of the scale.",
            lambda x, a, b: _log_normal((x - b) / a) - a.log().sum(),
        ),
        Mistake(
            "the log-determinant is the sum over coordinates, not the mean.",
            lambda x, a, b: _log_normal((x - b) / a) - a.abs().log().mean(),
        ),
        Mistake(
            "undo the last thing first: the shift was added after the scale.",
            lambda x, a, b: _log_normal(x / a - b) - a.abs().log().sum(),
        ),
        Mistake(
            "the shift is undone, but x is stretched once more in place of shrunk.",
            lambda x, a, b: _log_normal((x - b) * a) - a.abs().log().sum(),
        ),
        Mistake(
            "this is the density itself; its logarithm is wanted.",
            lambda x, a, b: (_log_normal((x - b) / a) - a.abs().log().sum()).exp(),
        ),
        Mistake(
            "a log is missing: the density is divided by the product of the scales.",
            lambda x, a, b: _log_normal((x - b) / a) - a.abs().prod(),
        ),
    ),
)

CHECKERS = (
    flow_matching_loss,
    marginal_velocity,
    velocity_to_score,
    euler_sample,
    sde_step,
    to_straight_path,
    few_steps_experiment,
    flow_log_density,
)
