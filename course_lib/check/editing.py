"""Checks of the exercises on editing images and inverse problems.

Right answers come from known angles, from data that are made part by part, from matrices that are
written out, from derivatives by hand and from walks of known length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample

__all__ = ["CHECKERS"]

BATCHES = (*SHAPES[:2], (IMAGES, torch.float64, "two images, double precision"))


def _check_times(x: Tensor, t: Any) -> None:
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        got = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"a {type(t).__name__}"
        raise ValueError(f"the function wants a time for each sample, a tensor (B,); got {got}")


def _times(draw: Callable[..., Tensor], count: int, low: float = 0.2, high: float = 0.9) -> Tensor:
    """Times between two bounds, one for each sample, in double precision."""
    return low + (high - low) * draw(count).sigmoid()


# 1 slerp


def _slerp_cases(seed: int) -> Iterator[Case]:
    """Two directions at a known angle, so that no angle has to be measured."""
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(BATCHES):
        yield _slerp_case(draw, shape, (0.3, 0.8, 0.5)[i], True, dtype, f"equal norms; {label}")
    yield _slerp_case(draw, IMAGES, 0.25, False, torch.float64, "two norms")
    yield _slerp_case(draw, (3, 3), 0.0, False, torch.float64, "weight 0")
    yield _slerp_case(draw, (3, 3), 1.0, False, torch.float64, "weight 1")
    a = draw(*IMAGES).sign()  # their norm and the cosine have no rounding
    yield Case("both are the same", (a, a.clone(), 0.3), a.clone())
    a = draw(64, 3)  # whatever the formula, some cosines come out a little above 1
    label = "64 pairs that point the same way, so that some cosines are rounded to above 1"
    yield Case(label, (a, 3 * a, 0.3), 1.6 * a, tolerance=1e-4)  # an angle of 1e-8 is rounding


def _slerp_case(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    u: float,
    equal: bool,
    dtype: torch.dtype,
    label: str,
) -> Case:
    pair = torch.linalg.qr(draw(shape[0], math.prod(shape[1:]), 2))[0]
    e1, e2 = (e.reshape(shape) for e in pair.unbind(-1))
    angle, r = (per_sample(_times(draw, shape[0], *ends), e1) for ends in ((0.5, 2.5), (2.0, 4.0)))
    r2 = r if equal else r + 1
    a, b = r * e1, r2 * (torch.cos(angle) * e1 + torch.sin(angle) * e2)
    on_first = r * torch.sin((1 - u) * angle) / torch.sin(angle)
    on_first = on_first + r2 * torch.sin(u * angle) / torch.tan(angle)
    right = on_first * e1 + r2 * torch.sin(u * angle) * e2
    return Case(label, (a.to(dtype), b.to(dtype), u), right.to(dtype))


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle of each pair, shape (B, 1, ..., 1)."""
    return per_sample(torch.acos(_cosine(a, b).clamp(-1, 1)), a)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    one, other = a.flatten(1), b.flatten(1)
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def _slerped(
    parts: Callable[..., tuple[Any, Any]] = lambda u, o: (torch.sin((1 - u) * o), torch.sin(u * o)),
    angle: Callable[[Tensor, Tensor], Tensor] = _angle,
    over: Callable[[Tensor], Any] = torch.sin,
    guard: bool = True,
    ends: Callable[[Tensor], Tensor] = lambda v: v,
) -> Callable[..., Tensor]:
    """slerp with other weights, another angle, or without a guard for the angle 0."""

    def wrong(a: Tensor, b: Tensor, u: float) -> Tensor:
        o = angle(a, b)
        first, second = parts(u, o)
        a, b = ends(a), ends(b)
        mixed = (first * a + second * b) / over(o)
        return torch.where(torch.sin(o) < 1e-6, torch.lerp(a, b, u), mixed) if guard else mixed

    return wrong


slerp = Checker(
    chapter="editing",
    name="slerp",
    title="From one noise to another",
    kind="implementation",
    difficulty=1,
    minutes=12,
    cases=_slerp_cases,
    mistakes=(
        Mistake(
            "this is the straight line. Half way its norm is too small for noise.",
            lambda a, b, u: torch.lerp(a, b, u),
        ),
        Mistake(
            "the straight line with a norm put right afterwards: the points lie on the arc, but "
            "not evenly.",
            lambda a, b, u: (
                (m := torch.lerp(a, b, u))
                * per_sample(a.flatten(1).norm(dim=1) / m.flatten(1).norm(dim=1), a)
            ),
        ),
        Mistake(
            "these weights keep the variance if the two are at a right angle. Here the angle is "
            "another one.",
            lambda a, b, u: math.sqrt(1 - u) * a + math.sqrt(u) * b,
        ),
        Mistake(
            "the straight line is divided by the root of the sum of squares, as in a blend. That "
            "keeps the variance of independent noises; here the norm of each pair counts.",
            lambda a, b, u: torch.lerp(a, b, u) / math.sqrt((1 - u) ** 2 + u**2),
        ),
        Mistake(
            "the weights are cosine and sine of a quarter turn. Use the angle between the two.",
            lambda a, b, u: math.cos(u * math.pi / 2) * a + math.sin(u * math.pi / 2) * b,
        ),
        Mistake(
            "the two ends are exchanged: weight 0 is the first one.",
            lambda a, b, u: _slerped()(b, a, u),
        ),
        Mistake(
            "the division by the sine of the angle is missing.",
            _slerped(over=lambda o: 1, guard=False),
        ),
        Mistake(
            "the cosine of the angle was taken for the angle.",
            _slerped(angle=lambda a, b: torch.cos(_angle(a, b)), guard=False),
        ),
        Mistake(
            "there is one angle for the whole batch. Each pair has its own.",
            _slerped(angle=lambda a, b: _angle(a[None], b[None]).reshape([1] * a.ndim)),
        ),
        Mistake(
            "the angle is taken along the last axis. An image is one vector: all of its pixels "
            "count.",
            _slerped(
                angle=lambda a, b: torch.acos(
                    F.cosine_similarity(a, b, dim=-1).clamp(-1, 1)
                ).unsqueeze(-1)
            ),
        ),
        Mistake(
            "both were brought to norm 1, and the result is left there.",
            _slerped(ends=lambda v: v / per_sample(v.flatten(1).norm(dim=1), v)),
        ),
        Mistake(
            "right, but if both are the same, the angle is 0, and so is what you divide by. There "
            "a straight line will do.",
            _slerped(guard=False),
        ),
        Mistake(
            "right, but rounding makes some cosines a little larger than 1, and these have no "
            "angle. Bring them back to 1 first.",
            _slerped(angle=lambda a, b: per_sample(torch.acos(_cosine(a, b)), a)),
        ),
        Mistake(
            "the product of the two is not divided by their norms, so it is no cosine.",
            _slerped(
                angle=lambda a, b: per_sample(torch.acos((a * b).flatten(1).sum(1).clamp(-1, 1)), a)
            ),
        ),
    ),
)

# 2 inpaint


class _Guess:
    """A prediction of the data in which each coordinate has a say in all others."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        _check_times(x, t)
        together = per_sample(x.flatten(1).mean(1), x)
        return torch.tanh(x + together) * (1 - per_sample(t, x) / 2)


def _inpaint_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (shape, dtype, label), steps in zip(BATCHES, (3, 4, 2), strict=True):
        x, known = draw(*shape).to(dtype), draw(*shape).to(dtype)
        mask = (draw(*shape[1:]) > 0).to(dtype)
        mask.view(-1)[0], mask.view(-1)[1] = 1, 0
        ts, eps = torch.linspace(1, 0, steps + 1).to(dtype), draw(steps, *shape).to(dtype)
        yield _inpaint_case(x, known, mask, ts, eps, f"{steps} steps; {label}")
    x, known, eps = draw(3, 2), draw(3, 2), draw(2, 3, 2)
    ts, ones = torch.tensor([0.8, 0.5, 0.1]).double(), torch.ones(2).double()
    half = torch.tensor([1.0, 0.0]).double()
    yield _inpaint_case(x, known, half, ts, eps, "from 0.8 to 0.1")
    yield _inpaint_case(x, known, ones, ts, eps, "all is known")
    yield _inpaint_case(x, known, 0 * ones, ts, eps, "nothing is known")


def _inpaint_case(
    x: Tensor, known: Tensor, mask: Tensor, ts: Tensor, eps: Tensor, label: str
) -> Case:
    guess, state = _Guess(), x
    for i in range(len(ts) - 1):
        t, s = ts[i], ts[i + 1]
        velocity = (state - guess(state, t.expand(len(x)))) / t
        noisy = torch.lerp(known, eps[i], s)
        state = torch.where(mask.bool(), noisy, state + (s - t) * velocity)
    return Case(label, (guess, x, known, mask, ts, eps), state)


def _painted(
    noisy: Callable[..., Tensor] = lambda known, e, t, s, x0: (1 - s) * known + s * e,
    paste: Callable[..., Tensor] = lambda m, a, b: m * a + (1 - m) * b,
    before: bool = False,
    last: Callable[..., Tensor] | None = None,
    which: Callable[[int, int], int] = lambda i, n: i,
    implied: bool = False,
) -> Callable[..., Tensor]:
    """inpaint with another paste, pasted before the step, or with another last one."""

    def wrong(f: Any, x: Tensor, known: Tensor, m: Tensor, ts: Tensor, eps: Tensor) -> Tensor:
        n = len(ts) - 1
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            e = eps[which(i, n)]
            x = paste(m, noisy(known, e, t, s, x), x) if before else x
            x0 = f(x, t.expand(len(x)))
            hat = (x - (1 - t) * x0) / t
            x = (1 - s) * x0 + s * hat
            x = x if before else paste(m, noisy(known, hat if implied else e, t, s, x0), x)
        return x if last is None else last(m, known, x)

    return wrong


inpaint = Checker(
    chapter="editing",
    name="inpaint",
    title="Mend a picture",
    kind="bug",
    difficulty=2,
    minutes=15,
    cases=_inpaint_cases,
    mistakes=(
        Mistake(
            "both bugs are still there: the known pixels are pasted clean, and before the step.",
            _painted(lambda known, e, t, s, x0: known, before=True),
        ),
        Mistake(
            "the known pixels are clean, but the state around them is noisy. The network sees a "
            "mixture that it was never trained on.",
            _painted(lambda known, e, t, s, x0: known),
        ),
        Mistake(
            "the known pixels are pasted before the step, so the last step moves them again.",
            _painted(lambda known, e, t, s, x0: (1 - t) * known + t * e, before=True),
        ),
        Mistake(
            "the known pixels have the noise of the time before the step. After it the state is "
            "at the later one, with less noise.",
            _painted(lambda known, e, t, s, x0: (1 - t) * known + t * e),
        ),
        Mistake(
            "the known pixels are pasted before the step, with the noise that belongs after it.",
            _painted(before=True),
        ),
        Mistake(
            "the mask is the wrong way round: 1 stands for known.",
            _painted(paste=lambda m, a, b: (1 - m) * a + m * b),
        ),
        Mistake(
            "noise is added to the known pixels, but they are not shrunk.",
            _painted(lambda known, e, t, s, x0: known + s * e),
        ),
        Mistake(
            "the known pixels are shrunk, but their noise is missing.",
            _painted(lambda known, e, t, s, x0: (1 - s) * known),
        ),
        Mistake(
            "the noise that the step implies is put on the known pixels. It belongs to other "
            "data; use what is given.",
            _painted(implied=True),
        ),
        Mistake(
            "the same noise is used in every step. There is a draw for each.",
            _painted(which=lambda i, n: 0),
        ),
        Mistake(
            "the draws of the noise are used in the wrong order.",
            _painted(which=lambda i, n: n - 1 - i),
        ),
        Mistake(
            "the known pixels are pasted clean at the very end. That is right only if the last "
            "time is 0; the grid may stop earlier.",
            _painted(last=lambda m, known, x: m * known + (1 - m) * x),
        ),
        Mistake(
            "the known pixels are pasted before each step, and clean at the end. A paste after "
            "each step, with the noise of that step, is asked for; the grid may stop earlier.",
            _painted(
                lambda known, e, t, s, x0: (1 - t) * known + t * e,
                before=True,
                last=lambda m, known, x: m * known + (1 - m) * x,
            ),
        ),
        Mistake(
            "the factors of the known pixels and of their noise are exchanged.",
            _painted(lambda known, e, t, s, x0: s * known + (1 - s) * e),
        ),
        Mistake(
            "the known pixels are put into the prediction of the data. It is the state, after "
            "the step, that gets them, with noise.",
            lambda f, x, known, m, ts, eps: _painted(paste=lambda m, a, b: b)(
                lambda y, t: m * known + (1 - m) * f(y, t), *(x, known, m, ts, eps)
            ),
        ),
        Mistake(
            "nothing is pasted at all.",
            _painted(paste=lambda m, a, b: b),
        ),
    ),
)

# 3 jump_back


def _jump_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    curve = Callable[[Tensor], Tensor]
    paths: tuple[tuple[str, curve, curve], ...] = (
        ("the straight path", lambda t: 1 - t, lambda t: t),
        ("a VP path", torch.cos, torch.sin),
        ("a VE path", torch.ones_like, lambda t: 3 * t),
    )
    for (shape, dtype, label), (name, alpha, sigma) in zip(SHAPES, paths, strict=True):
        t = _times(draw, shape[0], 0.4, 0.9)
        s = t * _times(draw, shape[0], 0.3, 0.8)
        x, z = draw(*shape).to(dtype), draw(*shape).to(dtype)
        factors = (alpha(s), sigma(s), alpha(t), sigma(t))
        yield _jump_case(x, factors, z, f"{name}; {label}")
    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    x, z, t = draw(4, 2), draw(4, 2), _times(draw, 4)
    yield _jump_case(x, (one, zero, 1 - t, t), z, "from clean data")
    yield _jump_case(x, (1 - t, t, zero, one), z, "to pure noise, where alpha is 0")
    yield _jump_case(x, (1 - t, t, 1 - t, t), z, "both times are the same")


def _jump_case(x: Tensor, factors: tuple[Tensor, ...], z: Tensor, label: str) -> Case:
    a_s, s_s, a_t, s_t = factors
    ratio = (a_t * s_s) / (s_t * a_s)  # of the two ratios of signal and noise
    fresh = s_t * (1 - ratio**2).clamp(min=0).sqrt()
    right = per_sample(a_t / a_s, x) * x + per_sample(fresh, x) * z
    return Case(label, (x, *(f.to(x) for f in factors), z), right)


def _jumped(
    keep: Callable[..., Tensor] = lambda a, s, b, r: b / a,
    fresh: Callable[..., Tensor] = lambda a, s, b, r: (r**2 - (b / a * s) ** 2).clamp(min=0).sqrt(),
    axes: Callable[[Tensor, Tensor], Tensor] = per_sample,
) -> Callable[..., Tensor]:
    """jump_back with other factors of (alpha_s, sigma_s, alpha_t, sigma_t)."""

    def wrong(x: Tensor, a: Tensor, s: Tensor, b: Tensor, r: Tensor, z: Tensor) -> Tensor:
        return axes(keep(a, s, b, r), x) * x + axes(fresh(a, s, b, r), x) * z

    return wrong


jump_back = Checker(
    chapter="editing",
    name="jump_back",
    title="Jump back into the noise",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=_jump_cases,
    mistakes=(
        Mistake(
            "the state is treated as clean data. It holds noise already, and is shrunk already.",
            _jumped(lambda a, s, b, r: b, lambda a, s, b, r: r),
        ),
        Mistake(
            "the state is shrunk rightly, but all of the noise of the later time is added. A part "
            "of it is in the state.",
            _jumped(fresh=lambda a, s, b, r: r),
        ),
        Mistake(
            "the noise that is in the state shrinks with it. You count it as if it did not.",
            _jumped(fresh=lambda a, s, b, r: (r**2 - s**2).clamp(min=0).sqrt()),
        ),
        Mistake(
            "standard deviations are subtracted. Of independent noise the variances add.",
            _jumped(fresh=lambda a, s, b, r: r - b / a * s),
        ),
        Mistake(
            "this is the variance of the fresh noise. Its root multiplies the draw.",
            _jumped(fresh=lambda a, s, b, r: r**2 - (b / a * s) ** 2),
        ),
        Mistake(
            "the share of the old noise is not squared with its factor.",
            _jumped(fresh=lambda a, s, b, r: (r**2 - b / a * s**2).clamp(min=0).sqrt()),
        ),
        Mistake(
            "the state is not shrunk. Between the two times the data lose weight.",
            _jumped(lambda a, s, b, r: torch.ones_like(a)),
        ),
        Mistake(
            "the state is not shrunk, and its noise is not either. That is right on a VE path "
            "only.",
            _jumped(
                lambda a, s, b, r: torch.ones_like(a),
                lambda a, s, b, r: (r**2 - s**2).clamp(min=0).sqrt(),
            ),
        ),
        Mistake(
            "the variances are added. What the state brings along is there already.",
            _jumped(fresh=lambda a, s, b, r: (r**2 + (b / a * s) ** 2).sqrt()),
        ),
        Mistake(
            "the state is shrunk by alpha of the later time. A part of the way it is shrunk "
            "already.",
            _jumped(lambda a, s, b, r: b),
        ),
        Mistake(
            "the ratio of the alphas is upside down; it need not be finite.",
            _jumped(lambda a, s, b, r: a / b),
        ),
        Mistake(
            "the fresh noise keeps a sum of squares at 1. That is right if both times have "
            "alpha and sigma on a circle, and wrong on other paths.",
            _jumped(fresh=lambda a, s, b, r: (1 - (b / a) ** 2).sqrt()),
        ),
        Mistake(
            "the state is rescaled by the sigmas. Its data then have the wrong weight.",
            _jumped(lambda a, s, b, r: r / s, lambda a, s, b, r: torch.zeros_like(r)),
        ),
        Mistake(
            "the noise is missing.",
            _jumped(fresh=lambda a, s, b, r: torch.zeros_like(r)),
        ),
        Mistake(
            "the factors of shape (B,) met the last axis. They belong to the first.",
            _jumped(axes=lambda values, x: values),
        ),
    ),
)

# 4 measured_gaussian

SIZES = (
    ((4, 3, 2), torch.float32, "two numbers of three coordinates, single precision"),
    ((3, 3, 3), torch.float64, "as many numbers as coordinates"),
    ((2, 4, 1), torch.float64, "one number of four coordinates"),
)


def _measured_cases(seed: int) -> Iterator[Case]:
    """By precisions, which add; and by data made of known and unknown parts."""
    draw = normal(seed)
    for (n, D, M), dtype, label in SIZES:
        root, A = draw(D, D), draw(M, D)
        precision = root @ root.T + torch.eye(D)
        mean, y, std = draw(D), draw(n, M), 0.5 + 0.1 * seed
        total = precision + A.T @ A / std**2
        right = torch.linalg.solve(total, (precision @ mean + y @ A / std**2).T).T
        args = (mean, torch.linalg.inv(precision), A, y)
        found = (right.to(dtype), torch.linalg.inv(total).to(dtype))
        yield Case(label, (*(v.to(dtype) for v in args), std), found, tolerance=2e-4)
    yield _parts_case(draw)


def _parts_case(draw: Callable[..., Tensor]) -> Case:
    """Coordinates 0 and 2 are known without noise; 1 and 3 are W times them, and more."""
    W, k, u = draw(2, 2), [0, 2], [1, 3]
    root, rest = draw(2, 2), draw(2, 2)
    of_known = root @ root.T + torch.eye(2)
    left = rest @ rest.T + torch.eye(2)
    cov, mean, y = torch.zeros(4, 4).double(), torch.zeros(4).double(), draw(3, 2)
    _fill(cov, k, k, of_known)
    _fill(cov, u, k, W @ of_known)
    _fill(cov, k, u, of_known @ W.T)
    _fill(cov, u, u, W @ of_known @ W.T + left)
    right, spread = torch.zeros(3, 4).double(), torch.zeros(4, 4).double()
    right[:, k], right[:, u] = y, y @ W.T
    _fill(spread, u, u, left)
    args = (mean, cov, torch.eye(4).double()[k], y, 0.0)
    return Case("inpainting: two coordinates known, without noise", args, (right, spread))


def _fill(matrix: Tensor, rows: list[int], columns: list[int], block: Tensor) -> None:
    matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = block


def _measured(
    gain: Callable[..., Tensor] = lambda C, A, S: torch.linalg.solve(S, A @ C).mT,
    seen: Callable[..., Tensor] = lambda C, A, s: A @ C @ A.T + s**2 * torch.eye(len(A)).to(A),
    error: Callable[..., Tensor] = lambda y, m, A: y - m @ A.T,
    spread: Callable[..., Tensor] = lambda C, K, A: C - K @ A @ C,
    start: Callable[[Tensor], Any] = lambda m: m,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """measured_gaussian with another gain, error or covariance."""

    def wrong(m: Tensor, C: Tensor, A: Tensor, y: Tensor, s: float) -> tuple[Tensor, Tensor]:
        K = gain(C, A, seen(C, A, s))
        return start(m) + error(y, m, A) @ K.mT, spread(C, K, A)

    return wrong


def _by_precisions(m: Tensor, C: Tensor, A: Tensor, y: Tensor, s: float) -> tuple[Tensor, Tensor]:
    variance = torch.tensor(s**2).to(C)
    cov = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / variance)
    return (torch.linalg.solve(C, m) + y @ A / variance) @ cov, cov


measured_gaussian = Checker(
    chapter="editing",
    name="measured_gaussian",
    title="A Gaussian, measured",
    kind="derivation",
    difficulty=3,
    minutes=25,
    cases=_measured_cases,
    mistakes=(
        Mistake(
            "the noise of the measurement enters by its standard deviation. Its variance counts.",
            _measured(seen=lambda C, A, s: A @ C @ A.T + s * torch.eye(len(A)).to(A)),
        ),
        Mistake(
            "the noise of the measurement is left out.",
            _measured(seen=lambda C, A, s: A @ C @ A.T + 1e-12 * torch.eye(len(A)).to(A)),
        ),
        Mistake(
            "the covariance of the data is left out of that of the measurement.",
            _measured(seen=lambda C, A, s: A @ A.T + s**2 * torch.eye(len(A)).to(A)),
        ),
        Mistake(
            "the measurement is not compared with what the mean lets one expect.",
            _measured(error=lambda y, m, A: y),
        ),
        Mistake(
            "the correction has the wrong sign: a measurement above what was expected raises the "
            "mean.",
            _measured(error=lambda y, m, A: m @ A.T - y),
        ),
        Mistake(
            "this is the correction alone. The mean of the data is missing.",
            _measured(start=lambda m: 0),
        ),
        Mistake(
            "the mean is right. The covariance is that before the measurement.",
            _measured(spread=lambda C, K, A: C),
        ),
        Mistake(
            "the mean is right. The covariance grows; a measurement can only make it smaller.",
            _measured(spread=lambda C, K, A: C + K @ A @ C),
        ),
        Mistake(
            "the mean is right. This is what the covariance loses, not what is left.",
            _measured(spread=lambda C, K, A: K @ A @ C),
        ),
        Mistake(
            "the mean is right. Of the covariance only the diagonal is there: what the "
            "coordinates know of each other is lost.",
            _measured(spread=lambda C, K, A: torch.diag((C - K @ A @ C).diagonal())),
        ),
        Mistake(
            "the gain spreads the error by the operator alone. What the coordinates know of each "
            "other is in the covariance.",
            _measured(gain=lambda C, A, S: torch.linalg.solve(S, A).mT),
        ),
        Mistake(
            "the gain multiplies by the covariance of the measurement. It divides.",
            _measured(gain=lambda C, A, S: C @ A.T @ S),
        ),
        Mistake(
            "right with noise. But this form divides by its variance, which may be 0.",
            _by_precisions,
        ),
    ),
)

# 5 measurement_score


class _Bent:
    """A prediction of the data whose derivative is known by hand."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        _check_times(x, t)
        return torch.sin(x) * (1 - per_sample(t, x) / 2)

    @staticmethod
    def slope(x: Tensor, t: Tensor) -> Tensor:
        """The derivative by x, coordinate by coordinate."""
        return torch.cos(x) * (1 - per_sample(t, x) / 2)


class _Rows:
    """A linear measurement by a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T


def _score_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (shape, dtype, label), std, M in zip(BATCHES, (0.5, 2.0, 0.25), (2, 3, 5), strict=True):
        x, t = draw(*shape).to(dtype), _times(draw, shape[0]).to(dtype)
        matrix = draw(M, math.prod(shape[1:])).to(dtype)
        y = draw(shape[0], M).to(dtype)
        error = y - _Rows(matrix)(_Bent()(x, t))
        right = (error @ matrix).reshape(shape) * _Bent.slope(x, t) / std**2
        yield Case(label, (_Bent(), _Rows(matrix), x, t, y, std), right)


def _scored(
    result: Callable[..., Tensor] = lambda g, s: -g / (2 * s**2),
    loss: Callable[[Tensor], Tensor] = lambda e: e.square().sum(),
    guess: Callable[..., Tensor] = lambda f, x, t: f(x, t),
) -> Callable[..., Tensor]:
    """measurement_score with another factor, another loss, or another guess of the data."""

    def wrong(f: Any, measure: Any, x: Tensor, t: Tensor, y: Tensor, std: float) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            error = y - measure(guess(f, x, t))
            return result(torch.autograd.grad(loss(error), x)[0], std)

    return wrong


def _straight_through(f: Any, x: Tensor, t: Tensor) -> Tensor:
    return x + (f(x, t) - x).detach()


measurement_score = Checker(
    chapter="editing",
    name="measurement_score",
    title="Guided by a measurement",
    kind="bug",
    difficulty=2,
    minutes=15,
    cases=_score_cases,
    mistakes=(
        Mistake(
            "all three bugs are still there: the sign, the mean, and the standard deviation.",
            _scored(lambda g, s: g / (2 * s), lambda e: e.square().mean()),
        ),
        Mistake(
            "the sign is wrong: this leads away from the measurement.",
            _scored(lambda g, s: g / (2 * s**2)),
        ),
        Mistake(
            "the errors are averaged, so a sample's score depends on how many others there are.",
            _scored(loss=lambda e: e.square().mean()),
        ),
        Mistake(
            "the errors are averaged over the batch. Each sample has a score of its own: sum.",
            _scored(loss=lambda e: e.square().sum(1).mean()),
        ),
        Mistake(
            "the errors are averaged over the measured numbers. In a log density they add up.",
            _scored(loss=lambda e: e.square().mean(1).sum()),
        ),
        Mistake(
            "the error is divided by the standard deviation. The density has its square.",
            _scored(lambda g, s: -g / (2 * s)),
        ),
        Mistake(
            "sign and mean are still wrong; the variance is right.",
            _scored(lambda g, s: g / (2 * s**2), lambda e: e.square().mean()),
        ),
        Mistake(
            "mean and standard deviation are still wrong; the sign is right.",
            _scored(lambda g, s: -g / (2 * s), lambda e: e.square().mean()),
        ),
        Mistake(
            "sign and standard deviation are still wrong; the sum is right.",
            _scored(lambda g, s: g / (2 * s)),
        ),
        Mistake(
            "the factor 2 in front of the variance is missing.",
            _scored(lambda g, s: -g / s**2),
        ),
        Mistake(
            "this is the gradient of the distance, not of its square.",
            _scored(loss=lambda e: e.square().sum(1).sqrt().sum()),
        ),
        Mistake(
            "the noise of the measurement is left out: it says how much the error counts.",
            _scored(lambda g, s: -g / 2),
        ),
        Mistake(
            "the prediction is left out: the noisy state itself is measured.",
            _scored(guess=lambda f, x, t: x),
        ),
        Mistake(
            "the gradient does not go through the prediction. How it moves with the state counts.",
            _scored(guess=_straight_through),
        ),
    ),
)

# 6 blur_adjoint

KERNELS = (
    ((2, 1, 5, 5), (3, 3), torch.float32, "3 by 3, single precision"),
    ((3, 1, 4, 4), (3, 3), torch.float64, "3 by 3, double precision"),
    ((1, 1, 5, 4), (1, 3), torch.float64, "a blur along the rows"),
    ((2, 1, 6, 5), (5, 3), torch.float64, "5 by 3"),
)


def _correlate(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel[None, None], padding=(kernel.shape[0] // 2, kernel.shape[1] // 2))


def _adjoint_cases(seed: int) -> Iterator[Case]:
    """The matrix of the blur, column by column, is turned over."""
    draw = normal(seed)
    for shape, size, dtype, label in KERNELS:
        y, kernel = draw(*shape), draw(*size)
        pixels = shape[2] * shape[3]
        columns = torch.eye(pixels).double().reshape(pixels, 1, *shape[2:])
        matrix = _correlate(columns, kernel).flatten(1).T
        right = (y.flatten(1) @ matrix).reshape(shape)
        yield Case(label, (y.to(dtype), kernel.to(dtype)), right.to(dtype))
    y, kernel = draw(2, 1, 3, 3), draw(1, 1)
    yield Case("a kernel of one pixel", (y, kernel), kernel[0, 0] * y)


def _bordered(mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """blur_adjoint that continues the image beyond its border."""

    def wrong(y: Tensor, kernel: Tensor) -> Tensor:
        height, width = kernel.shape
        beyond = [width // 2] * 2 + [height // 2] * 2
        return F.conv2d(F.pad(y, beyond, mode=mode), kernel.flip(0, 1)[None, None])

    return wrong


blur_adjoint = Checker(
    chapter="editing",
    name="blur_adjoint",
    title="The adjoint of a blur",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_adjoint_cases,
    mistakes=(
        Mistake(
            "this is the blur itself. It is its own adjoint only if the kernel is symmetric.",
            _correlate,
        ),
        Mistake(
            "the kernel is turned over in one direction only, up and down.",
            lambda y, kernel: _correlate(y, kernel.flip(0)),
        ),
        Mistake(
            "the kernel is turned over in one direction only, left and right.",
            lambda y, kernel: _correlate(y, kernel.flip(1)),
        ),
        Mistake(
            "the rows and columns of the kernel are exchanged. The matrix of the blur is "
            "transposed, not its kernel.",
            lambda y, kernel: _correlate(y, kernel.T),
        ),
        Mistake(
            "the kernel is turned over, and the result divided by the sum of its weights.",
            lambda y, kernel: _correlate(y, kernel.flip(0, 1)) / kernel.sum(),
        ),
        Mistake(
            "the border is left out: outside of the image there are zeros.",
            lambda y, kernel: F.conv2d(y, kernel.flip(0, 1)[None, None]),
        ),
        Mistake(
            "the image has grown by a border. What falls outside of it is lost.",
            lambda y, kernel: F.conv_transpose2d(y, kernel[None, None]),
        ),
        Mistake(
            "the image was blurred first: this is the blur and then its adjoint.",
            lambda y, kernel: _correlate(_correlate(y, kernel), kernel.flip(0, 1)),
        ),
        Mistake(
            "the image, not the kernel, is turned over.",
            lambda y, kernel: _correlate(y.flip(2, 3), kernel),
        ),
        Mistake(
            "at the border the image goes on at its other side. The blur has zeros there.",
            _bordered("circular"),
        ),
        Mistake(
            "at the border the image is continued by copies of its edge. The blur has zeros there.",
            _bordered("replicate"),
        ),
    ),
)

# 7 gram_matrix

MAPS = (
    ((2, 3, 4, 4), torch.float32, "three filters, single precision"),
    ((3, 4, 2, 5), torch.float64, "four filters, double precision"),
    ((1, 6, 2, 2), torch.float64, "more filters than places"),
    ((2, 1, 3, 3), torch.float64, "one filter"),
)


def _gram_cases(seed: int) -> Iterator[Case]:
    """Place by place."""
    draw = normal(seed)
    for shape, dtype, label in MAPS:
        maps = draw(*shape).abs()
        places = maps.flatten(2).unbind(2)
        total = sum(f[:, :, None] * f[:, None, :] for f in places)
        right = torch.as_tensor(total) / len(places)
        yield Case(label, (maps.to(dtype),), right.to(dtype))


def _grams(
    count: Callable[[Tensor], Any] = lambda m: m.shape[2] * m.shape[3],
    form: Callable[[Tensor], Tensor] = lambda f: f @ f.mT,
    before: Callable[[Tensor], Tensor] = lambda f: f,
) -> Callable[[Tensor], Tensor]:
    """gram_matrix with another divisor or another product."""
    return lambda maps: form(before(maps.flatten(2))) / count(maps)


gram_matrix = Checker(
    chapter="editing",
    name="gram_matrix",
    title="What is left without places",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=_gram_cases,
    mistakes=(
        Mistake(
            "this is the sum over places, which grows with the image. The mean is asked for.",
            _grams(lambda m: 1),
        ),
        Mistake(
            "the sum is divided by the number of places and filters. Only over places there is a "
            "mean.",
            _grams(lambda m: m[0].numel()),
        ),
        Mistake(
            "the sum is divided by the number of filters. The mean goes over places.",
            _grams(lambda m: m.shape[1]),
        ),
        Mistake(
            "the mean is divided by the size of the batch too. Images have nothing to do with "
            "each other.",
            _grams(lambda m: m.numel() / m.shape[1]),
        ),
        Mistake(
            "this compares places with each other. The filters are to be compared.",
            _grams(form=lambda f: f.mT @ f),
        ),
        Mistake(
            "the means of the filters were taken out: this is a covariance.",
            _grams(before=lambda f: f - f.mean(2, keepdim=True)),
        ),
        Mistake(
            "the mean over the filters was taken out at each place.",
            _grams(before=lambda f: f - f.mean(1, keepdim=True)),
        ),
        Mistake(
            "the features were brought to norm 1: their strength is a part of the style.",
            _grams(before=lambda f: F.normalize(f, dim=1)),
        ),
        Mistake(
            "the means of two filters are multiplied. The mean of their product is asked for.",
            _grams(lambda m: 1, lambda f: f.mean(2)[:, :, None] * f.mean(2)[:, None]),
        ),
        Mistake(
            "the whole batch has one matrix here. Each image has its own.",
            lambda maps: (
                torch.einsum("bip,bjp->ij", *[maps.flatten(2)] * 2) / (maps.numel() / maps.shape[1])
            ),
        ),
        Mistake(
            "the maps were reshaped to have the filters last. That mixes filters and places; it "
            "does not exchange axes.",
            lambda maps: (f := maps.reshape(len(maps), -1, maps.shape[1])).mT @ f / f.shape[1],
        ),
        Mistake(
            "this is a matrix for each row of the image: only one of its two axes was summed.",
            lambda maps: torch.einsum("bihw,bjhw->bhij", maps, maps) / maps.shape[3],
        ),
    ),
)

# 8 invert_step


class _Wind:
    """A velocity that is linear in the state, so that a walk has a formula."""

    @staticmethod
    def rate(t: Tensor) -> Tensor:
        """What multiplies the state."""
        return 0.3 + t**2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        _check_times(x, t)
        return per_sample(self.rate(t), x) * x


def _invert_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (shape, dtype, label), rounds in zip(SHAPES, (1, 2, 3), strict=True):
        x, s = draw(*shape).to(dtype), _times(draw, shape[0], 0.1, 0.5)
        t = s + _times(draw, shape[0], 0.1, 0.4)
        count = "1 round" if rounds == 1 else f"{rounds} rounds"
        yield _invert_case(x, s.to(dtype), t.to(dtype), rounds, f"{count}; {label}")
    x, s = draw(4, 2), _times(draw, 4, 0.1, 0.5)
    yield _invert_case(x, s, s + 0.25, 0, "no round: the usual inversion")
    yield _invert_case(x, s, s + 0.25, 40, "many rounds")


def _invert_case(x: Tensor, s: Tensor, t: Tensor, rounds: int, label: str) -> Case:
    """A geometric sum."""
    q = (t - s) * _Wind.rate(t)
    total = (1 - q**rounds) / (1 - q) + q**rounds * (1 + (t - s) * _Wind.rate(s))
    return Case(label, (_Wind(), x, s, t, rounds), per_sample(total, x) * x)


def _inverted(
    move: Callable[..., Tensor] = lambda x, y, h, u: x + h * u,
    where: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y,
    when: Callable[[Tensor, Tensor], Tensor] = lambda s, t: t,
    first: Callable[..., Tensor] = lambda f, x, s, t: x + per_sample(t - s, x) * f(x, s),
    count: Callable[[int], int] = lambda n: n,
    axes: Callable[[Tensor, Tensor], Tensor] = per_sample,
) -> Callable[..., Tensor]:
    """invert_step with another correction, start or number of rounds."""

    def wrong(f: Any, x: Tensor, s: Tensor, t: Tensor, rounds: int) -> Tensor:
        y, h = first(f, x, s, t), axes(t - s, x)
        for _ in range(count(rounds)):
            y = move(x, y, h, f(where(x, y), when(s, t)))
        return y

    return wrong


invert_step = Checker(
    chapter="editing",
    name="invert_step",
    title="Undo a step exactly",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_invert_cases,
    mistakes=(
        Mistake(
            "the network is told the time of the data's end. The step that is undone began at the "
            "noisy end, and asked there.",
            _inverted(when=lambda s, t: s),
        ),
        Mistake(
            "the network is asked at the given state in every round. Ask it at the latest guess.",
            _inverted(where=lambda x, y: x),
        ),
        Mistake(
            "each round goes on from the last guess, further and further. Every round starts "
            "again from the given state.",
            _inverted(lambda x, y, h, u: y + h * u),
        ),
        Mistake(
            "a sign is wrong: the step that is undone moved against this direction.",
            _inverted(
                lambda x, y, h, u: x - h * u,
                first=lambda f, x, s, t: x - per_sample(t - s, x) * f(x, s),
            ),
        ),
        Mistake(
            "the first guess goes the wrong way.",
            _inverted(first=lambda f, x, s, t: x - per_sample(t - s, x) * f(x, s)),
        ),
        Mistake(
            "the rounds do nothing: this is the usual inversion.",
            _inverted(count=lambda n: 0),
        ),
        Mistake(
            "there is one round too many: the first guess is not counted.",
            _inverted(count=lambda n: n + 1),
        ),
        Mistake(
            "there is one round too few. The first guess does not count as a round.",
            _inverted(count=lambda n: max(n - 1, 0)),
        ),
        Mistake(
            "the first guess is the given state itself. It is one usual step ahead.",
            _inverted(first=lambda f, x, s, t: x),
        ),
        Mistake(
            "the first guess is told the time where it leads. Nothing is known there yet: the "
            "state and the time of the question belong together.",
            _inverted(first=lambda f, x, s, t: x + per_sample(t - s, x) * f(x, t)),
        ),
        Mistake(
            "only half of each correction is taken.",
            _inverted(lambda x, y, h, u: (y + x + h * u) / 2),
        ),
        Mistake(
            "the average of two velocities is taken: this is another step than the one to be "
            "undone.",
            lambda f, x, s, t, rounds: _inverted()(
                lambda y, r: f(y, r) if torch.equal(r, s) else (f(y, r) + f(x, s)) / 2,
                *(x, s, t, rounds),
            ),
        ),
        Mistake(
            "the two times are exchanged: this walks down, and the step that is undone ended at "
            "the smaller one.",
            lambda f, x, s, t, rounds: _inverted()(f, x, t, s, rounds),
        ),
        Mistake(
            "the times of shape (B,) met the last axis. They belong to the first.",
            _inverted(
                axes=lambda values, x: values,
                first=lambda f, x, s, t: x + (t - s) * f(x, s),
            ),
        ),
    ),
)

# 9 sdedit_experiment

SHARES = ("nearly all", "most", "half")
Edit = tuple[str, dict[str, Tensor]]
STARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class _Hills:
    """Best guess of the data on the straight path, if the data are two hills at -1 and 1."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Data of shape (B,) for states and times of shape (B,)."""
        _check_times(x, t)
        var = ((1 - t) * self.std) ** 2 + t**2
        side = torch.tanh((1 - t) * x / var)
        within = (1 - t) * self.std**2 / var
        return side + within * (x - (1 - t) * side)


def _edit_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for std, shrink, label in (
        (0.1, 0.5, "guides at half of the distance"),
        (0.1, 0.75, "guides at three quarters of the distance"),
        (0.2, 0.4, "wider hills"),
    ):
        sides = draw(500).sign()
        guide, eps, denoise = shrink * (sides + std * draw(500)), draw(500), _Hills(std)
        limit = 1.2 * std * math.sqrt(2 / math.pi)
        made = torch.stack([_edit(denoise, guide, eps, t0) for t0 in STARTS])
        error = ((made.abs() - 1).abs()).mean(1)
        kept = (made * guide > 0).double().mean(1)
        best = torch.tensor([t for t, e in zip(STARTS, error, strict=True) if e <= limit]).min()
        answer = (frozenset(SHARES), {"error": error, "kept": kept, "best": best.double()})
        yield Case(label, (denoise, guide, eps, STARTS, limit), answer, tolerance=1e-6)


def _edit(denoise: Any, guide: Tensor, eps: Tensor, t0: float, steps: int = 20) -> Tensor:
    x, ts = torch.lerp(guide, eps, t0), torch.linspace(t0, 0, steps + 1, dtype=guide.dtype)
    for t, s in itertools.pairwise(ts):
        data = denoise(x, t.expand(len(x)))
        x = data + s / t * (x - data)
    return x


def _edited(
    start: Callable[..., Tensor] = lambda g, e, t: (1 - t) * g + t * e,
    error: Callable[..., Tensor] = lambda x, g: (x.abs() - 1).abs().mean(),
    kept: Callable[..., Tensor] = lambda x, g: (x * g > 0).double().mean(),
    best: Callable[..., Any] = lambda ts, e, k, limit: torch.where(e <= limit, ts, 1.0).min(),
    grid: Callable[..., Tensor] = lambda t0: torch.linspace(t0, 0, 21, dtype=torch.float64),
    move: Callable[..., Tensor] = lambda x, data, t, s: data + s / t * (x - data),
) -> Callable[..., Edit]:
    """sdedit_experiment with another start, walk, measure or choice."""

    def wrong(f: Any, g: Tensor, e: Tensor, starts: tuple[float, ...], limit: float) -> Edit:
        errors, shares = [], []
        for t0 in starts:
            x = start(g, e, t0)
            for t, s in itertools.pairwise(grid(t0)):
                x = move(x, f(x, t.expand(len(x))), t, s)
            errors.append(error(x, g))
            shares.append(kept(x, g))
        found = torch.stack(errors), torch.stack(shares)
        choice = best(torch.tensor(starts).double(), *found, limit)
        return SHARES[0], {"error": found[0], "kept": found[1], "best": choice}

    return wrong


def _edit_remark(value: Edit) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    share = measured["kept"][STARTS.index(0.5)].item()
    is_so = SHARES[0] if share > 0.95 else SHARES[1] if share > 0.6 else SHARES[2]
    verb = foretold(prediction, is_so)
    at = [abs(t - measured["best"].item()) < 1e-6 for t in STARTS].index(True)
    return (
        f"from t0 = 0.5, {share:.0%} of the guides keep their hill ({verb}). The smallest t0 that "
        f"is good enough is {STARTS[at]:g}, and there {measured['kept'][at]:.0%} keep it."
    )


sdedit_experiment = Checker(
    chapter="editing",
    name="sdedit_experiment",
    title="How far back into the noise?",
    kind="experiment",
    difficulty=2,
    minutes=25,
    cases=_edit_cases,
    mistakes=(
        Mistake(
            "noise is added to the guide, but the guide is not shrunk.",
            _edited(lambda g, e, t: g + t * e),
        ),
        Mistake(
            "the guide is shrunk as on a VP path, where the squares of both factors sum to 1.",
            _edited(lambda g, e, t: math.sqrt(1 - t**2) * g + t * e),
        ),
        Mistake(
            "the walk starts at the guide itself, without noise. The denoiser then takes away "
            "noise that is not there.",
            _edited(lambda g, e, t: g),
        ),
        Mistake(
            "the walk starts at pure noise, but is told an earlier time: the guide has no say.",
            _edited(lambda g, e, t: e),
        ),
        Mistake(
            "the factors of guide and noise are exchanged.",
            _edited(lambda g, e, t: t * g + (1 - t) * e),
        ),
        Mistake(
            "the walk begins at t = 1, but the state is at t0.",
            _edited(grid=lambda t0: torch.linspace(1, 0, 21, dtype=torch.float64)),
        ),
        Mistake(
            "the walk has 19 steps: between 20 times there is one step less.",
            _edited(grid=lambda t0: torch.linspace(t0, 0, 20, dtype=torch.float64)),
        ),
        Mistake(
            "this is one look of the denoiser, not a walk: its answer is a mean over both hills.",
            _edited(grid=lambda t0: torch.tensor([t0, 0.0], dtype=torch.float64)),
        ),
        Mistake(
            "the noise is not put back: after each step the state is the bare prediction.",
            _edited(move=lambda x, data, t, s: data),
        ),
        Mistake(
            "this is the mean squared distance. The mean distance is asked for.",
            _edited(error=lambda x, g: (x.abs() - 1).square().mean()),
        ),
        Mistake(
            "this is the root of the mean squared distance. The mean distance is asked for.",
            _edited(error=lambda x, g: (x.abs() - 1).square().mean().sqrt()),
        ),
        Mistake(
            "the distance from the hill of the guide was measured. A result may be on the other "
            "one; the nearer one counts here.",
            _edited(error=lambda x, g: (x - g.sign()).abs().mean()),
        ),
        Mistake(
            "the error is the distance from the guide. How near to a hill is the result?",
            _edited(error=lambda x, g: (x - g).abs().mean()),
        ),
        Mistake(
            "the distance from the hill at 1 alone was measured. There are two of them.",
            _edited(error=lambda x, g: (x - 1).abs().mean()),
        ),
        Mistake(
            "this is the share that changed its hill. The share that kept it is asked for.",
            _edited(kept=lambda x, g: (x * g < 0).double().mean()),
        ),
        Mistake(
            "this is the share on the hill at 1, wherever the guides were.",
            _edited(kept=lambda x, g: (x > 0).double().mean()),
        ),
        Mistake(
            "the measurements are right. Of the times that are good enough you chose the largest; "
            "the smallest keeps most.",
            _edited(best=lambda ts, e, k, limit: ts[e <= limit].max()),
        ),
        Mistake(
            "the measurements are right. The chosen time has the least error of all, however "
            "little it keeps.",
            _edited(best=lambda ts, e, k, limit: ts[e.argmin()]),
        ),
        Mistake(
            "the measurements are right. This is the place of the chosen time in the list, not "
            "the time.",
            _edited(best=lambda ts, e, k, limit: (e <= limit).double().argmax().double()),
        ),
    ),
    remark=_edit_remark,
)

CHECKERS = (
    slerp,
    inpaint,
    jump_back,
    measured_gaussian,
    measurement_score,
    blur_adjoint,
    gram_matrix,
    invert_step,
    sdedit_experiment,
)
