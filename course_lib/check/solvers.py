"""Checks of the exercises on solvers.

Right answers come from the exact solutions of linear equations, from quadrature, and from the
solvers of `course_lib`, which have tests of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, normal, with_single
from course_lib.paths import CosineVP, Linear

__all__ = ["CHECKERS"]

# 1 rk4_step

NODES = (0.0, 0.5, 0.5, 1.0)
SHARES = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def _pull(x: Tensor, t: Tensor) -> Tensor:
    """A velocity that depends on both, for times of shape (B,)."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"the network wants one time for each sample; got {tuple(t.shape)}")
    return torch.sin(x) + t[:, None] * (1 + x)


def _rk4_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for t, s, d in ((0.9, 0.3, 2), (0.4 + 0.02 * seed, 0.1, 5)):
        x, (now, later) = draw(4, d), torch.tensor([t, s], dtype=torch.float64)
        right = _stages()(_pull, x, now, later)
        yield Case(f"from t = {t:g} to {s:g}", (_pull, x, now, later), right)


def _stages(
    nodes: tuple[float, ...] = NODES,
    times: tuple[float, ...] | None = None,
    shares: tuple[float, ...] = SHARES,
    first: bool = False,
    turn: int = 1,
    walks: bool = False,
) -> Callable[..., Tensor]:
    """A step with one look at each node; by default it is RK4.

    Each look goes to its node along the look before, or along the first one; `times` are those at
    which it asks, `turn` = -1 walks the wrong way, `walks` goes on from the look before.
    """

    def step(velocity: Any, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, looks, place = turn * (s - t), [torch.zeros_like(x)], x
        for node, at in zip(nodes, times or nodes, strict=True):
            along = looks[1] if first and len(looks) > 1 else looks[-1]
            place = (place if walks else x) + node * h * along
            looks.append(velocity(place, (t + at * (s - t)).expand(len(x))))
        return x + h * sum(c * look for c, look in zip(shares, looks[1:], strict=True))

    return step


rk4_step = Checker(
    chapter="solvers",
    name="rk4_step",
    title="Four looks, one step",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=with_single(_rk4_cases),
    mistakes=(
        Mistake(
            "this is Euler's step: the other three looks are not used.",
            _stages(shares=(1.0, 0.0, 0.0, 0.0)),
        ),
        Mistake(
            "the four looks count the same. The two in the middle count twice.",
            _stages(shares=(0.25,) * 4),
        ),
        Mistake(
            "the weights 1, 2, 2, 1 add up to 6, not to 4.",
            _stages(shares=(0.25, 0.5, 0.5, 0.25)),
        ),
        Mistake(
            "the looks are added up with weights 1, 2, 2, 1, but not divided by 6.",
            _stages(shares=(1.0, 2.0, 2.0, 1.0)),
        ),
        Mistake(
            "the third and fourth look go along the first. Each goes along the one before it.",
            _stages(first=True),
        ),
        Mistake(
            "the looks in the middle go the whole way. They go half of it.",
            _stages(nodes=(0.0, 1.0, 1.0, 1.0), times=NODES),
        ),
        Mistake(
            "all looks ask at time t. The two in the middle ask halfway, the last at s.",
            _stages(times=(0.0, 0.0, 0.0, 0.0)),
        ),
        Mistake(
            "the fourth look goes half of the way; it goes to the end.",
            _stages(nodes=(0.0, 0.5, 0.5, 0.5), times=NODES),
        ),
        Mistake(
            "you go the wrong way: from t down to s the length is s - t, which is negative.",
            _stages(turn=-1),
        ),
        Mistake(
            "each look starts where the one before it ended. All four start from x.",
            _stages(walks=True),
        ),
        Mistake(
            "this is Heun's step, with two looks. RK4 takes four.",
            _stages(nodes=(0.0, 1.0), shares=(0.5, 0.5)),
        ),
    ),
)

# 2 stability_factor

METHODS = ("euler", "heun", "rk4", "exact")


def _stability_cases(seed: int) -> Iterator[Case]:
    z = -3 * torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for method in METHODS:
        yield Case(f"method {method!r}", (z, method), _growth(z, method))


def _growth(z: Tensor, method: str) -> Tensor:
    """Factor of one step of length 1 on dx/dt = z x, from x = 1: done, not derived."""
    if method == "exact":
        return z.exp()
    one = torch.ones_like(z)
    k1 = z * one
    if method == "euler":
        return one + k1
    if method == "heun":
        return one + (k1 + z * (one + k1)) / 2
    k2 = z * (one + k1 / 2)
    k3 = z * (one + k2 / 2)
    return one + (k1 + 2 * k2 + 2 * k3 + z * (one + k3)) / 6


def _series(orders: dict[str, Sequence[float]], exact: Callable[[Tensor], Tensor]) -> Any:
    def wrong(z: Tensor, method: str) -> Tensor:
        if method == "exact":
            return exact(z)
        return sum((c * z**i for i, c in enumerate(orders[method])), torch.zeros_like(z))

    return wrong


E1, H2, R4 = (1.0, 1.0), (1.0, 1.0, 0.5), (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24)
ALTERNATING = (1, -1, 1 / 2, -1 / 6, 1 / 24)

stability_factor = Checker(
    chapter="solvers",
    name="stability_factor",
    title="When does a step explode?",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=with_single(_stability_cases),
    mistakes=(
        Mistake(
            "one over factorials is missing: the series of the exponential is z^n / n!.",
            _series({"euler": E1, "heun": (1, 1, 1), "rk4": (1, 1, 1, 1, 1)}, torch.exp),
        ),
        Mistake(
            "for RK4 one term is missing: it agrees with the exponential up to z^4.",
            _series({"euler": E1, "heun": H2, "rk4": R4[:-1]}, torch.exp),
        ),
        Mistake(
            "for Heun's method a term is missing: it agrees with the exponential up to z^2.",
            _series({"euler": E1, "heun": E1, "rk4": R4}, torch.exp),
        ),
        Mistake(
            "the sign of z is turned: for dx/dtau = -k x, z = -k h is negative already.",
            _series(
                {"euler": (1, -1), "heun": (1, -1, 0.5), "rk4": ALTERNATING},
                lambda z: (-z).exp(),
            ),
        ),
        Mistake(
            "the change of x is not its factor: the old x, the 1, is missing.",
            _series(
                {"euler": (0, 1), "heun": (0, 1, 0.5), "rk4": (0, *R4[1:])}, lambda z: z.expm1()
            ),
        ),
        Mistake(
            "for the exact solution the sign is right, but for the methods it is turned: z = -k h "
            "is negative already.",
            _series({"euler": (1, -1), "heun": (1, -1, 0.5), "rk4": ALTERNATING}, torch.exp),
        ),
        Mistake(
            "the terms of RK4 are divided by n. It must be n!.",
            _series({"euler": E1, "heun": H2, "rk4": (1, 1, 1 / 2, 1 / 3, 1 / 4)}, torch.exp),
        ),
        Mistake(
            "for Heun's method both slopes are added. Take their mean.",
            _series({"euler": E1, "heun": (1, 2, 1), "rk4": R4}, torch.exp),
        ),
        Mistake(
            "one term too many: a method of order p stops after the term z^p.",
            _series({"euler": H2, "heun": R4[:-1], "rk4": (*R4, 1 / 120)}, torch.exp),
        ),
        Mistake(
            "the four slopes of RK4 do not weigh the same: the two in the middle count twice.",
            _series({"euler": E1, "heun": H2, "rk4": (1, 1, 1 / 2, 3 / 16, 1 / 16)}, torch.exp),
        ),
        Mistake(
            "this is the absolute value. R has a sign; Euler's turns negative for long steps.",
            lambda z, method: _growth(z, method).abs(),
        ),
    ),
)

# 3 exponential_step


def _exponential_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for path, name, d in ((CosineVP(), "cosine path", 2), (Linear(), "straight path", 5)):
        t, s = torch.tensor([0.8, 0.3 + 0.05 * seed], dtype=torch.float64)
        x, eps = draw(4, d), draw(4, d)
        a_t, s_t, a_s, s_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
        lam = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        ends = (a_t / s_t).log(), (a_s / s_s).log()
        integral = torch.trapezoid((-(ends[0] + lam * (ends[1] - ends[0]))).exp(), dx=1 / 20_000)
        right = a_s / a_t * x - a_s * integral * (ends[1] - ends[0]) * eps
        yield Case(name, (x, eps, a_t, s_t, a_s, s_s), right, tolerance=1e-6)


def _exponential(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """exponential_step by a function of x, eps, the four factors, and h."""

    def wrong(x: Tensor, eps: Tensor, a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor) -> Tensor:
        h = (a_s / s_s).log() - (a_t / s_t).log()
        return formula(x, eps, a_t, s_t, a_s, s_s, h)

    return wrong


exponential_step = Checker(
    chapter="solvers",
    name="exponential_step",
    title="The linear part, exactly",
    kind="derivation",
    difficulty=3,
    minutes=25,
    cases=with_single(_exponential_cases),
    mistakes=(
        Mistake(
            "this is Euler's step in lambda: the exponential under the integral was taken as "
            "constant. Integrate it.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - a / at * st * h * e),
        ),
        Mistake(
            "the integral runs from lambda_t to lambda_s, so that h is positive: e^h, not e^-h.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x + s * torch.expm1(-h) * e),
        ),
        Mistake(
            "the sign of the second term is wrong: the noise is taken out.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x + s * torch.expm1(h) * e),
        ),
        Mistake(
            "sigma is taken at t. The integral ends at s.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - st * torch.expm1(h) * e),
        ),
        Mistake(
            "the first factor is that of the data prediction, sigma_s / sigma_t. With the noise "
            "held constant it is alpha_s / alpha_t.",
            _exponential(lambda x, e, at, st, a, s, h: s / st * x - s * torch.expm1(h) * e),
        ),
        Mistake(
            "the minus one is missing: a step of length 0 must change nothing.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - s * torch.exp(h) * e),
        ),
        Mistake(
            "the exponential under the integral was taken as constant, at its end. Integrate it.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - s * h * e),
        ),
        Mistake(
            "the factor alpha_s before the integral is missing.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - (st / at - s / a) * e),
        ),
        Mistake(
            "alpha before the integral is taken at t. The whole is multiplied by alpha_s.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - at * (st / at - s / a) * e),
        ),
        Mistake(
            "alpha_s where sigma_s belongs: what is alpha_s e^(-lambda_s)?",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - a * torch.expm1(h) * e),
        ),
        Mistake(
            "the linear part is missing: without noise x must change by alpha_s / alpha_t.",
            _exponential(lambda x, e, at, st, a, s, h: x - s * torch.expm1(h) * e),
        ),
        Mistake(
            "h is twice what it should be: lambda is log(alpha / sigma), half of log(SNR).",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - s * torch.expm1(2 * h) * e),
        ),
        Mistake(
            "e^(+lambda) was integrated, which belongs to the data prediction.",
            _exponential(lambda x, e, at, st, a, s, h: a / at * x - a * (a / s - at / st) * e),
        ),
        Mistake(
            "this is the step for a constant data prediction, and eps is none.",
            _exponential(lambda x, e, at, st, a, s, h: s / st * x - a * torch.expm1(-h) * e),
        ),
    ),
)

# 4 multistep_data


def _multistep_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for lams, shape, label in (
        ((0.0, 0.5, 1.0), (3, 2), "equal steps"),
        ((0.1, 0.4, 1.3), IMAGES, "unequal steps, images"),
    ):
        lam = torch.tensor(lams, dtype=torch.float64)
        slope, offset = draw(*shape), draw(*shape)
        before, now = offset + slope * lam[0], offset + slope * lam[1]
        right = offset + slope * (lam[1] + lam[2]) / 2  # the value in the middle of the new step
        yield Case(label, (now, before, lam[2] - lam[1], lam[1] - lam[0]), right)


multistep_data = Checker(
    chapter="solvers",
    name="multistep_data",
    title="Remember the last answer",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_multistep_cases),
    mistakes=(
        Mistake(
            "the ratio is upside down: the slope is the change over the old step, and you go half "
            "of the new one.",
            lambda d, e, h, k: d + k / (2 * h) * (d - e),
        ),
        Mistake(
            "this is the value at the end of the new step. Its middle is a better mean.",
            lambda d, e, h, k: d + h / k * (d - e),
        ),
        Mistake(
            "the sign is wrong: you go forward from the last two answers, not between them.",
            lambda d, e, h, k: d - h / (2 * k) * (d - e),
        ),
        Mistake(
            "this is right when both steps are equally long. They need not be.",
            lambda d, e, h, k: d + (d - e) / 2,
        ),
        Mistake("the old answer is not used: this is DDIM.", lambda d, e, h, k: d),
        Mistake(
            "this is the mean of the two answers, which lies behind. You go forward.",
            lambda d, e, h, k: (d + e) / 2,
        ),
        Mistake(
            "the slope is the change divided by the length of the old step.",
            lambda d, e, h, k: d + h / 2 * (d - e),
        ),
        Mistake(
            "you start from the old answer. The new step begins at the present one.",
            lambda d, e, h, k: e + h / (2 * k) * (d - e),
        ),
        Mistake(
            "the two answers are the old step apart, not both steps together.",
            lambda d, e, h, k: d + h / (2 * (h + k)) * (d - e),
        ),
        Mistake(
            "the two weights do not add up to 1: from two equal answers the same must come out.",
            lambda d, e, h, k: (1 + h / (2 * k)) * d + h / (2 * k) * e,
        ),
    ),
)

# 5 error_norm


def _norm_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, label in (((6,), "six coordinates"), ((2, 3, 4), "a batch of matrices")):
        error, x, new = 1e-3 * draw(*shape), draw(*shape), 3 * draw(*shape)
        atol, rtol = 1e-3, 1e-2
        scale = atol + rtol * torch.maximum(x.abs(), new.abs())
        right = torch.linalg.vector_norm(error / scale) / error.numel() ** 0.5
        yield Case(label, (error, x, new, atol, rtol), right)


def _norm(ratio: Callable[..., Tensor], reduce: Callable[[Tensor], Tensor] | None = None) -> Any:
    """error_norm with another ratio, or another way to make one number of it."""

    def wrong(error: Tensor, x: Tensor, new: Tensor, atol: float, rtol: float) -> Tensor:
        value = ratio(error, x.abs(), new.abs(), atol, rtol)
        return reduce(value) if reduce else value.square().mean().sqrt()

    return wrong


def _scaled(e: Tensor, x: Tensor, y: Tensor, atol: float, rtol: float) -> Tensor:
    return e / (atol + rtol * torch.maximum(x, y))


error_norm = Checker(
    chapter="solvers",
    name="error_norm",
    title="How large is an error?",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=with_single(_norm_cases),
    mistakes=(
        Mistake(
            "this norm grows with the number of coordinates. Take the mean of the squares.",
            _norm(_scaled, lambda v: v.square().sum().sqrt()),
        ),
        Mistake("the root is missing.", _norm(_scaled, lambda v: v.square().mean())),
        Mistake(
            "this is the largest ratio; one coordinate would decide for all.",
            _norm(_scaled, lambda v: v.abs().max()),
        ),
        Mistake(
            "this is an absolute norm: an error of 0.01 counts the same at x = 0.1 and at x = 80.",
            _norm(lambda e, x, y, atol, rtol: e),
        ),
        Mistake(
            "only the old state sets the scale. Take the larger of old and new.",
            _norm(lambda e, x, y, atol, rtol: e / (atol + rtol * x)),
        ),
        Mistake(
            "the tolerances are multiplied; they must be added: rtol * |x| where x is large, atol "
            "where it is near 0.",
            _norm(lambda e, x, y, atol, rtol: e / (atol * rtol * torch.maximum(x, y))),
        ),
        Mistake(
            "the absolute values are averaged, not the squares.",
            _norm(_scaled, lambda v: v.abs().mean()),
        ),
        Mistake(
            "only the new state sets the scale. Take the larger of new and old.",
            _norm(lambda e, x, y, atol, rtol: e / (atol + rtol * y)),
        ),
        Mistake(
            "the smaller of old and new sets the scale. Take the larger.",
            _norm(lambda e, x, y, atol, rtol: e / (atol + rtol * torch.minimum(x, y))),
        ),
        Mistake(
            "old and new are added. Take the larger of the two.",
            _norm(lambda e, x, y, atol, rtol: e / (atol + rtol * (x + y))),
        ),
        Mistake(
            "atol and rtol are exchanged: rtol multiplies the size of x.",
            _norm(lambda e, x, y, atol, rtol: e / (rtol + atol * torch.maximum(x, y))),
        ),
        Mistake(
            "one number is the scale of all coordinates. Take the larger coordinate by coordinate.",
            _norm(lambda e, x, y, a, r: e / (a + r * torch.maximum(x.max(), y.max()))),
        ),
        Mistake(
            "the absolute value of x is missing: a negative coordinate gets too small a scale.",
            lambda e, x, y, a, r: (e / (a + r * torch.maximum(x, y))).square().mean().sqrt(),
        ),
    ),
)

# 6 next_step_size


def _size_cases(seed: int) -> Iterator[Case]:
    for error, label in (
        (0.3 + 0.1 * seed, "an error below 1"),
        (2.0 + seed, "an error above 1"),
        (1e-12, "almost no error: grow at most fivefold"),
        (1e9, "a huge error: shrink at most to a fifth"),
    ):
        for order in (1, 4):
            right = 0.1 * min(5.0, max(0.2, 0.9 * math.exp(-math.log(error) / (order + 1))))
            yield Case(f"{label}; order {order}", (0.1, error, order), right)


def _size(factor: Callable[[float, int], float]) -> Callable[[float, float, int], float]:
    return lambda h, error, order: h * factor(error, order)


def _clamped(factor: float) -> float:
    return min(5.0, max(0.2, factor))


next_step_size = Checker(
    chapter="solvers",
    name="next_step_size",
    title="How long may the next step be?",
    kind="implementation",
    difficulty=2,
    minutes=10,
    cases=_size_cases,
    mistakes=(
        Mistake(
            "the exponent is wrong: the error of one step of a method of order p is h^(p+1).",
            _size(lambda e, p: _clamped(0.9 * e ** (-1 / p))),
        ),
        Mistake(
            "upside down: a large error must shorten the step.",
            _size(lambda e, p: _clamped(0.9 * e ** (1 / (p + 1)))),
        ),
        Mistake(
            "both bounds are missing: a lucky step must not make the next a thousand times longer.",
            _size(lambda e, p: 0.9 * e ** (-1 / (p + 1))),
        ),
        Mistake(
            "the safety factor 0.9 is missing: half of all steps would just fail.",
            _size(lambda e, p: _clamped(e ** (-1 / (p + 1)))),
        ),
        Mistake(
            "this doubles or halves. It forgets how large the error was, and wastes steps.",
            _size(lambda e, p: 2.0 if e < 1 else 0.5),
        ),
        Mistake(
            "the root is missing: the error of a step is not proportional to its length.",
            _size(lambda e, p: _clamped(0.9 / e)),
        ),
        Mistake(
            "the safety factor comes after the bounds; clamp last.",
            _size(lambda e, p: 0.9 * _clamped(e ** (-1 / (p + 1)))),
        ),
        Mistake(
            "the safety factor stands inside of the root, where it does less.",
            _size(lambda e, p: _clamped((0.9 / e) ** (1 / (p + 1)))),
        ),
        Mistake(
            "this is the factor alone. Multiply the length of this step by it.",
            lambda h, error, order: _clamped(0.9 * error ** (-1 / (order + 1))),
        ),
        Mistake(
            "the length itself is clamped to [0.2, 5]. Those are bounds of the factor.",
            lambda h, error, order: _clamped(h * 0.9 * error ** (-1 / (order + 1))),
        ),
        Mistake(
            "the lower bound is missing: a bad step must not make the next 100,000 times shorter.",
            _size(lambda e, p: min(5.0, 0.9 * e ** (-1 / (p + 1)))),
        ),
        Mistake(
            "the upper bound is missing: one lucky step must not make the next a thousand times "
            "longer.",
            _size(lambda e, p: max(0.2, 0.9 * e ** (-1 / (p + 1)))),
        ),
        Mistake(
            "after a good step the length stays as it was. It must be allowed to grow.",
            _size(lambda e, p: 1.0 if e <= 1 else _clamped(0.9 * e ** (-1 / (p + 1)))),
        ),
        Mistake(
            "the exponent is one too high: order is p already, and the error of a step is h^(p+1).",
            _size(lambda e, p: _clamped(0.9 * e ** (-1 / (p + 2)))),
        ),
    ),
)

# 7 order_experiment

PREDICTIONS = ("1", "2")
STEPS = (20, 40, 80, 160)


def _order_cases(seed: int) -> Iterator[Case]:
    for last, label in (("euler", "Heun, its last step by Euler"), ("heun", "Heun throughout")):
        rate = 1.0 + 0.3 * seed
        errors = [_heun_error(rate, n, last) for n in STEPS]
        answer = (frozenset(PREDICTIONS), _slope([math.log(n) for n in STEPS], errors))
        solve = _solver(rate, last)
        yield Case(label, (solve, math.exp(-rate), STEPS), answer, tolerance=0.02)


def _heun_error(rate: float, steps: int, last: str) -> float:
    return abs(_solver(rate, last)(steps) - math.exp(-rate))


def _solver(rate: float, last: str) -> Callable[[int], float]:
    """Steps of dx/dt = -rate x over [0, 1] from x = 1, all but the last by Heun's method."""

    def solve(steps: int) -> float:
        z = -rate / steps
        heun, euler = 1 + z + z**2 / 2, 1 + z
        return heun ** (steps - 1) * (heun if last == "heun" else euler)

    return solve


def _slope(logs: list[float], errors: list[float]) -> float:
    """Minus the slope of log(error) over log(steps), by least squares."""
    return -_line(logs, [math.log(e) if e > 0 else math.nan for e in errors])


def _line(xs: list[float], ys: list[float]) -> float:
    """Slope of the line through points, by least squares."""
    x, y = torch.tensor([xs, ys], dtype=torch.float64)
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def _through_origin(counts: Sequence[int], errors: list[float]) -> float:
    x, y = torch.tensor([counts, errors], dtype=torch.float64).log()
    return -((x * y).sum() / x.square().sum()).item()


def _off(solve: Callable[[int], float], exact: float, steps: int) -> float:
    return abs(solve(steps) - exact)


LOG10_E = math.log10(math.e)


def _order(measure: Callable[..., float]) -> Callable[..., Any]:
    return lambda solve, exact, counts: (PREDICTIONS[0], measure(solve, exact, counts))


def _order_by(points: Callable[..., tuple[list[float], list[float]]]) -> Callable[..., Any]:
    return _order(lambda solve, exact, counts: _slope(*points(solve, exact, counts)))


def _order_remark(value: tuple[str, float]) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    verb = "as you predicted" if prediction == "2" else "you predicted 1"
    return (
        f"the measured order is {measured:.2f} ({verb}). One step of Euler errs by h^2, and there "
        "is only one: the order of the whole stays 2."
    )


order_experiment = Checker(
    chapter="solvers",
    name="order_experiment",
    title="Does one bad step spoil the order?",
    kind="experiment",
    difficulty=2,
    minutes=15,
    cases=_order_cases,
    mistakes=(
        Mistake(
            "the slope is negative, since the error falls; the order is minus the slope.",
            _order(lambda f, x, n: -_slope([math.log(k) for k in n], [abs(f(k) - x) for k in n])),
        ),
        Mistake(
            "take the logarithm of the number of steps too: a power law is straight only when both "
            "axes are logarithmic.",
            _order_by(lambda f, x, n: ([float(k) for k in n], [abs(f(k) - x) for k in n])),
        ),
        Mistake(
            "this is the slope of the solutions, not of their errors.",
            _order_by(lambda f, x, n: ([math.log(k) for k in n], [f(k) for k in n])),
        ),
        Mistake(
            "the squared error was used; its order is twice as high.",
            _order_by(lambda f, x, n: ([math.log(k) for k in n], [(f(k) - x) ** 2 for k in n])),
        ),
        Mistake(
            "take the logarithm of the errors too.",
            _order_by(
                lambda f, x, n: ([math.log(k) for k in n], [math.exp(_off(f, x, k)) for k in n])
            ),
        ),
        Mistake(
            "the mean of the log n is not taken off, so the line is forced through the origin.",
            _order(lambda f, x, n: _through_origin(n, [_off(f, x, k) for k in n])),
        ),
        Mistake(
            "two different logarithms: base 10 in one, base e in the other.",
            _order_by(
                lambda f, x, n: ([math.log(k) for k in n], [_off(f, x, k) ** LOG10_E for k in n])
            ),
        ),
        Mistake(
            "the axes are exchanged: this is the slope of log n over the log of the error.",
            _order(
                lambda f, x, n: (
                    -_line([math.log(_off(f, x, k)) for k in n], [math.log(k) for k in n])
                )
            ),
        ),
    ),
    remark=_order_remark,
)

# 8 dpm_solver_2_step


def _dpm_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for r, d in ((0.5, 2), (0.3, 5)):
        for path, name in ((CosineVP(), "cosine path"), (Linear(), "straight path")):
            t, s = torch.tensor([0.7, 0.4 + 0.03 * seed], dtype=torch.float64)
            lam_t, lam_s = path.log_snr_half(t), path.log_snr_half(s)
            x, slope, offset = draw(4, d), draw(d), draw(d)
            predict = _linear_noise(slope, offset, path.log_snr_half)
            middle = path.t_of_lambda((lam_t + r * (lam_s - lam_t))[None])[0]
            # linear in lambda: e(lambda_t) and the slope through both looks, half a step on
            first, second = predict(x, t), predict(x, middle)
            mean = first + (second - first) / r / 2
            scale = path.sigma(s) * torch.expm1(lam_s - lam_t)
            right = path.alpha(s) / path.alpha(t) * x - scale * mean
            label = f"{name}, second look at r = {r}"
            yield Case(label, (predict, path, x, t, s, r), right)


def _linear_noise(slope: Tensor, offset: Tensor, lam: Callable[[Tensor], Tensor]) -> Any:
    """A noise prediction that is linear in lambda and does not depend on x."""
    return lambda x, t: (offset + slope * lam(t)).to(x).expand_as(x)


def _dpm(weights: Callable[[float], tuple[float, float]], look: float | None = None) -> Any:
    """dpm_solver_2_step with other weights of the two looks, or the second at a fixed r."""

    def wrong(predict: Any, path: Any, x: Tensor, t: Tensor, s: Tensor, r: float) -> Tensor:
        lam_t, lam_s = path.log_snr_half(t), path.log_snr_half(s)
        h, q = lam_s - lam_t, r if look is None else look
        m = path.t_of_lambda((lam_t + q * h)[None])[0]
        first = predict(x, t)
        u = path.alpha(m) / path.alpha(t) * x - path.sigma(m) * torch.expm1(q * h) * first
        one, two = weights(r)
        mean = one * first + two * predict(u, m)
        return path.alpha(s) / path.alpha(t) * x - path.sigma(s) * torch.expm1(h) * mean

    return wrong


dpm_solver_2_step = Checker(
    chapter="solvers",
    name="dpm_solver_2_step",
    title="Spot the bug: DPM-Solver-2",
    kind="bug",
    difficulty=2,
    minutes=20,
    cases=with_single(_dpm_cases),
    mistakes=(
        Mistake(
            "these are still the weights of the multistep rule, which looks back. Here the second "
            "look lies ahead, inside of the step.",
            _dpm(lambda r: (1 + 1 / (2 * r), -1 / (2 * r))),
        ),
        Mistake(
            "the two weights are exchanged: for r = 1/2 the first look would count alone.",
            _dpm(lambda r: (1 / (2 * r), 1 - 1 / (2 * r))),
        ),
        Mistake(
            "the weights are 1 - r and r. Put a line through both looks, and take its value in the "
            "middle of the step.",
            _dpm(lambda r: (1 - r, r)),
        ),
        Mistake("the mean of both looks is right for r = 1 only.", _dpm(lambda r: (0.5, 0.5))),
        Mistake("the second look alone is right for r = 1/2 only.", _dpm(lambda r: (0.0, 1.0))),
        Mistake("the second look is not used: this is DDIM.", _dpm(lambda r: (1.0, 0.0))),
        Mistake(
            "the weights do not add up to 1, the second has the wrong sign.",
            _dpm(lambda r: (1 - 1 / (2 * r), -1 / (2 * r))),
        ),
        Mistake(
            "only one of the two signs is mended; the weights must add up to 1.",
            _dpm(lambda r: (1 + 1 / (2 * r), 1 / (2 * r))),
        ),
        Mistake(
            "this is the value of the line at the end of the step. Take it in the middle.",
            _dpm(lambda r: (1 - 1 / r, 1 / r)),
        ),
        Mistake(
            "these are the weights of the multistep rule with the two looks exchanged.",
            _dpm(lambda r: (-1 / (2 * r), 1 + 1 / (2 * r))),
        ),
        Mistake(
            "the ratio is upside down: the nearer the second look is, the more its change counts.",
            _dpm(lambda r: (1 - r / 2, r / 2)),
        ),
        Mistake(
            "the weight 1/(2r) has become 2r, which is the same for r = 1/2 only.",
            _dpm(lambda r: (1 - 2 * r, 2 * r)),
        ),
    ),
)

CHECKERS = (
    rk4_step,
    stability_factor,
    exponential_step,
    multistep_data,
    error_norm,
    next_step_size,
    order_experiment,
    dpm_solver_2_step,
)
