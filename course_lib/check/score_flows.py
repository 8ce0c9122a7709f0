"""Checks of the exercises on score flows.

Right answers come from numbers that are chosen first and then pushed forward, from Jacobians of
whole maps, from the posterior of an exact mixture, and from distributions over grey levels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.comparing import kind
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample, with_single

__all__ = ["CHECKERS"]

# 1 bent_softplus


def _bent_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(SHAPES[:2]):
        share = (0.25, 0.1)[i] + 0.05 * seed
        yield _bent_case(3 * draw(*shape, dtype=dtype), share, f"a = {share:g}, {label}")
    for dtype, name in ((torch.float64, "double"), (torch.float32, "single")):
        x = torch.tensor([[-1000.0, 1000.0], [0.0, 500.0 + seed]], dtype=dtype)
        yield _bent_case(x, 0.5, f"inputs as large as 1000, {name} precision")
    x = 3 * draw(2, 1, 28, 28, dtype=torch.float32)
    yield _bent_case(x, 0.25, "large images, single precision")


def _bent_case(x: Tensor, share: float, label: str) -> Case:
    """f' = (a + e^x) / (1 + e^x): the answer in logarithms, from which nothing overflows."""
    zero = torch.zeros_like(x)
    soft = torch.logaddexp(x, zero)
    log_slope = torch.logaddexp(x, zero + math.log(share)) - soft
    return Case(label, (x, share), (torch.lerp(soft, x, share), _per_sample_sum(log_slope)))


def _per_sample_sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _bent_y(x: Tensor, a: float) -> Tensor:
    return a * x + (1 - a) * torch.nn.functional.softplus(x)


def _bent(
    y: Callable[[Tensor, float], Tensor] = _bent_y,
    slope: Callable[[Tensor, float], Tensor] = lambda x, a: a + (1 - a) * x.sigmoid(),
    total: Callable[[Tensor], Tensor] = lambda slope: _per_sample_sum(slope.log()),
) -> Callable[..., Any]:
    """bent_softplus with another value, derivative, or log-determinant of the derivatives."""
    return lambda x, a: (y(x, a), total(slope(x, a)))


bent_softplus = Checker(
    chapter="score_flows",
    name="bent_softplus",
    title="Make softplus a bijection",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_bent_cases,
    mistakes=(
        Mistake(
            "the product of many slopes underflows to 0 before the logarithm is taken. Sum the "
            "logarithms.",
            _bent(total=lambda slope: slope.flatten(1).prod(1).log()),
        ),
        Mistake(
            "the exponential overflows for large x. Softplus and sigmoid of torch do not.",
            _bent(
                lambda x, a: a * x + (1 - a) * (1 + x.exp()).log(),
                lambda x, a: a + (1 - a) * x.exp() / (1 + x.exp()),
            ),
        ),
        Mistake(
            "y overflows: the exponential of a large x is infinite, though its softplus is about "
            "x.",
            _bent(lambda x, a: a * x + (1 - a) * (1 + x.exp()).log()),
        ),
        Mistake(
            "the shares are exchanged: a belongs to the identity.",
            _bent(
                lambda x, a: _bent_y(x, 1 - a),
                lambda x, a: 1 - a + a * x.sigmoid(),
            ),
        ),
        Mistake(
            "the values are right. The derivative is that of softplus alone: differentiate the "
            "mixture.",
            _bent(slope=lambda x, a: x.sigmoid()),
        ),
        Mistake(
            "the values are right. In the derivative the share of softplus, 1 - a, is missing.",
            _bent(slope=lambda x, a: a + x.sigmoid()),
        ),
        Mistake(
            "the values are right. The derivative is taken at y; the step begins at x.",
            _bent(slope=lambda x, a: a + (1 - a) * _bent_y(x, a).sigmoid()),
        ),
        Mistake(
            "the values are right. The logarithm of a sum is not the sum of the logarithms.",
            _bent(slope=lambda x, a: a * (1 - a) * x.sigmoid()),
        ),
        Mistake(
            "the values are right. The derivatives are summed, and the logarithm taken of the "
            "sum. A determinant is their product.",
            _bent(total=lambda slope: slope.flatten(1).sum(1).log()),
        ),
        Mistake(
            "the values are right. The derivatives are summed as they are; their logarithms are "
            "missing.",
            _bent(total=_per_sample_sum),
        ),
        Mistake(
            "the values are right. This is the log-derivative of each coordinate. Sum it over "
            "those of a sample.",
            _bent(total=torch.log),
        ),
        Mistake(
            "the values are right. The log-determinant is summed over the batch. Each sample has "
            "its own.",
            _bent(total=lambda slope: slope.log().sum()),
        ),
        Mistake(
            "the values are right. The log-determinant is the sum over coordinates, not the mean.",
            _bent(total=lambda slope: slope.log().flatten(1).mean(1)),
        ),
        Mistake(
            "the values are right. This is the log-determinant of the way back: a sign is wrong.",
            _bent(total=lambda slope: -_per_sample_sum(slope.log())),
        ),
        Mistake(
            "the log-determinant is right, but y is softplus alone, which reaches no negative "
            "number.",
            _bent(lambda x, a: torch.nn.functional.softplus(x)),
        ),
        Mistake(
            "x is added as a whole. The shares are a and 1 - a.",
            _bent(
                lambda x, a: x + (1 - a) * torch.nn.functional.softplus(x),
                lambda x, a: 1 + (1 - a) * x.sigmoid(),
            ),
        ),
    ),
)

# 2 newton_inverse

STEPS = 25
BEND = 2.0  # where the functions bend: not where a lucky start would be


def _newton_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    mild, steep = _bend(0.25, 1.0), _bend(0.05, 4.0)
    for shape, (f, df), size, below, above, label in (
        ((4, 3), mild, 1.0, 4.0, 7.0, "a mild bend"),
        ((4, 1, 4, 4), steep, 1.0, 500.0, 300.0, "a steep bend between flat ends"),
        ((6,), steep, 1.0, 4.0, 7.0, "the same, with a short bracket"),
        ((6,), steep, 1e4, 5.0, 8.0, "numbers up to 10,000"),
    ):
        x = size * (1.5 * draw(*shape)).clamp(-1, 1) + BEND
        low = x - size * below * (1 + 0.2 * draw(*shape).abs())
        high = x + size * above * (1 + 0.2 * draw(*shape).abs())
        yield Case(label, (f, df, f(x), low, high, STEPS), x)


def _bend(share: float, k: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A bijection of the line, and its derivative."""
    return (
        lambda x: share * x + (1 - share) * torch.tanh(k * (x - BEND)),
        lambda x: share + (1 - share) * k * (1 - torch.tanh(k * (x - BEND)).square()),
    )


def _leash(new: Tensor, low: Tensor, high: Tensor, gap: Tensor) -> Tensor:
    """As far as the middle of the bracket, at most."""
    middle = (low + high) / 2
    return torch.where(gap < 0, torch.minimum(new, middle), torch.maximum(new, middle))


def _inside(new: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (low <= new) & (new <= high)


def _solve(
    step: Callable[..., Tensor] = lambda x, gap, slope: x - gap / slope,
    guard: Callable[..., Tensor] = _leash,
    error: Callable[[Tensor, Tensor], Tensor] = lambda value, y: value - y,
    moves: Callable[[Tensor], tuple[Any, Any]] = lambda gap: (gap <= 0, gap >= 0),
    start: Callable[..., Tensor] = lambda y, low, high: (low + high) / 2,
    stop: int | None = None,
) -> Callable[..., Tensor]:
    """newton_inverse with another step (of x, gap, slope), guard (of x, low, high, gap), or error.

    `moves` says of a gap whether the lower and the upper end move to x; `start` is a function of
    (y, low, high), `stop` the number of steps.
    """

    def wrong(f: Any, df: Any, y: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        x = start(y, low, high)
        for _ in range(stop or steps):
            gap, slope = error(f(x), y), df(x)
            lower, upper = moves(gap)
            low, high = torch.where(lower, x, low), torch.where(upper, x, high)
            x = guard(step(x, gap, slope), low, high, gap)
        return x

    return wrong


newton_inverse = Checker(
    chapter="score_flows",
    name="newton_inverse",
    title="Newton on a leash",
    kind="implementation",
    difficulty=2,
    minutes=25,
    cases=with_single(_newton_cases),
    mistakes=(
        Mistake(
            "a number that has arrived is an end of its bracket, no longer strictly inside, and is "
            "sent to the middle again; and a step that stays inside may still be too long.",
            _solve(
                guard=lambda new, low, high, gap: torch.where(
                    (low < new) & (new < high), new, (low + high) / 2
                ),
                moves=lambda gap: (gap < 0, gap >= 0),
            ),
        ),
        Mistake(
            "the smaller number is taken on both sides. Below x the shorter step is the larger.",
            _solve(guard=lambda new, low, high, gap: torch.minimum(new, (low + high) / 2)),
        ),
        Mistake(
            "without the bracket, Newton's method leaps from one flat end over the solution to "
            "the other, and back.",
            _solve(guard=lambda new, low, high, gap: new),
        ),
        Mistake(
            "this is Newton's method from 0 on. It needs the bracket: wherever it starts, some "
            "solution lies far away over a flat end.",
            _solve(guard=lambda new, *_: new, start=lambda y, low, high: torch.zeros_like(y)),
        ),
        Mistake(
            "this is Newton's method from y on, and y need not be near the solution. Use the "
            "bracket.",
            _solve(guard=lambda new, *_: new, start=lambda y, low, high: y),
        ),
        Mistake(
            "this is bisection alone. It is safe, but a step wins one binary digit only: take "
            "Newton's step where it is the shorter one.",
            _solve(guard=lambda new, low, high, gap: (low + high) / 2),
        ),
        Mistake(
            "a step may go as far as the other end of the bracket here, and then the next one may "
            "lead back, for ever. It goes to the middle, at most.",
            _solve(
                guard=lambda new, low, high, gap: torch.where(
                    _inside(new, low, high), new, (low + high) / 2
                )
            ),
        ),
        Mistake(
            "steps are cut at the ends of the bracket, between which they may leap for ever. Cut "
            "them at its middle.",
            _solve(guard=lambda new, low, high, gap: new.clamp(low, high)),
        ),
        Mistake(
            "the longer of the two steps is taken. Go to the middle, at most.",
            _solve(guard=lambda new, low, high, gap: _leash(new, low, high, -gap)),
        ),
        Mistake(
            "the step has the wrong sign: where f is too large, x must become smaller.",
            _solve(lambda x, gap, slope: x + gap / slope),
        ),
        Mistake(
            "the error is multiplied by the derivative. Newton's step divides by it.",
            _solve(lambda x, gap, slope: x - gap * slope),
        ),
        Mistake(
            "y is not used: this solves f(x) = 0.",
            _solve(error=lambda value, y: value),
        ),
        Mistake(
            "the wrong end of the bracket moves. Where f(x) is below y, the solution lies above "
            "x, so x is the new lower end.",
            _solve(moves=lambda gap: (gap >= 0, gap <= 0)),
        ),
        Mistake(
            "the bracket never becomes shorter. After each look at f one of its ends moves to x.",
            _solve(moves=lambda gap: (gap != gap, gap != gap)),
        ),
        Mistake(
            "only the lower end of the bracket moves.",
            _solve(moves=lambda gap: (gap <= 0, gap != gap)),
        ),
        Mistake(
            "only the upper end of the bracket moves.",
            _solve(moves=lambda gap: (gap != gap, gap >= 0)),
        ),
        Mistake(
            "a number that has arrived, where f(x) is y, is sent to the middle of its bracket "
            "again. Move both of its ends to x, or leave it.",
            _solve(moves=lambda gap: (gap < 0, gap > 0)),
        ),
        Mistake(
            "one decision is made for all numbers. Each has a bracket of its own.",
            _solve(
                guard=lambda new, low, high, gap: (
                    new if bool((_leash(new, low, high, gap) == new).all()) else (low + high) / 2
                )
            ),
        ),
        Mistake(
            "only one step is taken. Does the function return inside of the loop?",
            _solve(stop=1),
        ),
    ),
)

# 3 plu_inverse


def _plu_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, d, label in (
        (4, 5, "five coordinates"),
        (3, 3, "as many samples as coordinates"),
        (2, 200, "200 coordinates, determinant about 1e-400"),
    ):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(d, generator=generator)
        while torch.equal(order[order], torch.arange(d)):  # not its own inverse, so that it shows
            order = torch.randperm(d, generator=generator)
        off = draw(d, d) / (2 * d**0.5)
        diagonal = (1 + draw(d).abs()) * (-1.0) ** torch.arange(1, d + 1)
        diagonal = diagonal / diagonal.abs().log().mean().exp() * (0.01 if d == 200 else 0.5)
        lower = off.tril(-1) + torch.eye(d).double()
        upper = (off.triu(1) + torch.eye(d).double()) * diagonal[:, None]
        z = draw(n, d)
        # the matrix as a whole: row i of P picks row order[i] of the product
        matrix = torch.nn.functional.one_hot(order, d).double() @ (lower @ upper)
        x = torch.stack([matrix @ row for row in z])
        log_det = -torch.linalg.slogdet(matrix).logabsdet.expand(n)
        yield Case(label, (x, order, lower, upper), (z, log_det.clone()))


def _plu(
    undo: Callable[[Tensor, Tensor], Tensor] = lambda x, order: x[:, order.argsort()],
    back: Callable[..., Tensor] = lambda h, lower, upper: _solved(upper, _solved(lower, h)),
    log_det: Callable[[Tensor, Tensor], Tensor] = lambda lower, upper: (
        -upper.diagonal().abs().log().sum()
    ),
    spread: Callable[[Tensor, int], Tensor] = lambda log_det, n: log_det.expand(n),
) -> Callable[..., Any]:
    """plu_inverse with another permutation, another way through the triangles, or determinant."""

    def wrong(x: Tensor, order: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return back(undo(x, order), lower, upper), spread(log_det(lower, upper), len(x))

    return wrong


def _solved(triangle: Tensor, h: Tensor) -> Tensor:
    """The rows whose products with the triangle are the rows h."""
    return torch.linalg.solve(triangle, h.mT).mT


def _solved_unit(triangle: Tensor, h: Tensor) -> Tensor:
    """The same with ones in place of the diagonal."""
    return torch.linalg.solve_triangular(triangle, h.mT, upper=True, unitriangular=True).mT


plu_inverse = Checker(
    chapter="score_flows",
    name="plu_inverse",
    title="A matrix with a cheap determinant",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=with_single(_plu_cases),
    mistakes=(
        Mistake(
            "the lower triangle is solved as an upper one, of which only its ones are seen. Solve "
            "it with upper=False.",
            _plu(back=lambda h, lower, upper: _solved(upper, h)),
        ),
        Mistake(
            "the noise is right. This is the log-determinant of the way there: that of the way "
            "back has the other sign.",
            _plu(log_det=lambda lower, upper: upper.diagonal().abs().log().sum()),
        ),
        Mistake(
            "the noise is right. An entry of the diagonal may be negative: take its absolute "
            "value.",
            _plu(log_det=lambda lower, upper: -upper.diagonal().log().sum()),
        ),
        Mistake(
            "the noise is right. The product of 200 small numbers is rounded to 0. Sum their "
            "logarithms.",
            _plu(log_det=lambda lower, upper: -upper.diagonal().prod().abs().log()),
        ),
        Mistake(
            "the noise is right. The diagonal of the lower triangle has ones only: the "
            "determinant is in the upper one.",
            _plu(log_det=lambda lower, upper: -lower.diagonal().abs().log().sum()),
        ),
        Mistake(
            "the noise is right. The log-determinant is the same for all samples, but wanted for "
            "each: shape (B,).",
            _plu(spread=lambda log_det, n: log_det),
        ),
        Mistake(
            "the noise is right. The logarithms are summed, not averaged.",
            _plu(log_det=lambda lower, upper: -upper.diagonal().abs().log().mean()),
        ),
        Mistake(
            "the permutation is not undone.",
            _plu(lambda x, order: x),
        ),
        Mistake(
            "the permutation is made once more. Undo it: what stands at i must go back to where "
            "it came from.",
            _plu(lambda x, order: x[:, order]),
        ),
        Mistake(
            "the triangles are undone in the wrong order. The last that was multiplied comes "
            "first.",
            _plu(back=lambda h, lower, upper: _solved(lower, _solved(upper, h))),
        ),
        Mistake(
            "the triangles are multiplied once more. To go back, solve.",
            _plu(back=lambda h, lower, upper: h @ upper.mT @ lower.mT),
        ),
        Mistake(
            "the triangles are transposed: a sample is a row here, and the formula has columns.",
            _plu(back=lambda h, lower, upper: _solved(upper.mT, _solved(lower.mT, h))),
        ),
        Mistake(
            "both triangles are solved in the right order, but transposed, as if samples were "
            "columns: the matrix acts on the coordinates of each row.",
            _plu(back=lambda h, lower, upper: _solved(lower.mT, _solved(upper.mT, h))),
        ),
        Mistake(
            "the diagonal of the upper triangle is taken for ones. That holds for the lower one.",
            _plu(back=lambda h, lower, upper: _solved_unit(upper, _solved(lower, h))),
        ),
    ),
)

# 4 affine_coupling


def _coupling_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, d, label in ((4, 6, "six coordinates"), (3, 6, "as many samples as in a half")):
        net = _conditioner(draw(d // 2, d // 2), draw(d // 2, d // 2))
        z = draw(n, d)
        x = torch.stack([_coupled(row, net) for row in z])
        log_det = torch.stack([_log_det_of(partial(_coupled, net=net), row) for row in z])
        yield Case(f"there, {label}", (z, net, False), (x, log_det))
        yield Case(f"back, {label}", (x, net, True), (z.clone(), -log_det))


def _conditioner(a: Tensor, b: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Log-scale and shift for the second half, from the first."""

    def net(h: Tensor) -> tuple[Tensor, Tensor]:
        if h.shape[1:] != a.shape[:1]:
            raise ValueError(f"net wants half of the coordinates, (B, {len(a)}); got {_shape(h)}")
        return torch.tanh(h @ a.to(h)), torch.sin(h @ b.to(h)) + 0.5

    return net


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _coupled(z: Tensor, net: Any) -> Tensor:
    """One sample through the layer, coordinate by coordinate."""
    half = len(z) // 2
    log_scale, shift = (v[0] for v in net(z[None, :half]))
    second = [z[half + i] * math.e ** log_scale[i] + shift[i] for i in range(half)]
    return torch.cat([z[:half], torch.stack(second)])


def _log_det_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Log of the absolute determinant of the Jacobian of a map of one sample."""
    return torch.linalg.slogdet(jacobian(function, x)).logabsdet


def _coupling(
    there: Callable[..., Tensor] = lambda v, s, b: v * s.exp() + b,
    back: Callable[..., Tensor] = lambda v, s, b: (v - b) * (-s).exp(),
    log_det: Callable[[Tensor, bool], Tensor] = lambda s, inverse: (-1) ** inverse * s.sum(1),
    first: int = 0,
    split: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: x.chunk(2, 1),
    join: Callable[..., Tensor] = lambda parts: torch.cat(parts, 1),
) -> Callable[..., Any]:
    """affine_coupling with other maps of (half, log-scale, shift), log-determinant, or halves."""

    def wrong(x: Tensor, net: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        parts = list(split(x))
        s, b = net(parts[first])
        parts[1 - first] = (back if inverse else there)(parts[1 - first], s, b)
        return join(parts), log_det(s, inverse)

    return wrong


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(parts), 2).flatten(1)


affine_coupling = Checker(
    chapter="score_flows",
    name="affine_coupling",
    title="One half steers the other",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=with_single(_coupling_cases),
    mistakes=(
        Mistake(
            "the two directions are exchanged: inverse=True leads from data to noise.",
            lambda x, net, inverse: _coupling()(x, net, not inverse),
        ),
        Mistake(
            "the samples are right. The log-determinant of the way back has the other sign.",
            _coupling(log_det=lambda s, inverse: s.sum(1)),
        ),
        Mistake(
            "the samples are right. The log-determinants have the wrong sign, there and back.",
            _coupling(log_det=lambda s, inverse: (-1) ** (not inverse) * s.sum(1)),
        ),
        Mistake(
            "the samples are right. The determinant is the product of the scales: sum their "
            "logarithms, which are what the network gives.",
            _coupling(log_det=lambda s, inverse: (-1) ** inverse * s.exp().sum(1)),
        ),
        Mistake(
            "the samples are right. The network gives the logarithm of the scale already.",
            _coupling(log_det=lambda s, inverse: (-1) ** inverse * s.abs().log().sum(1)),
        ),
        Mistake(
            "the samples are right. The log-determinant is summed over the batch too.",
            _coupling(log_det=lambda s, inverse: (-1) ** inverse * s.sum()),
        ),
        Mistake(
            "the samples are right. The log-determinant is not summed over the coordinates.",
            _coupling(log_det=lambda s, inverse: (-1) ** inverse * s),
        ),
        Mistake(
            "the samples are right. The log-determinant is the sum over coordinates, not the mean.",
            _coupling(log_det=lambda s, inverse: (-1) ** inverse * s.mean(1)),
        ),
        Mistake(
            "on the way back the shift is undone after the scale. Undo the last thing first.",
            _coupling(back=lambda v, s, b: v * (-s).exp() - b),
        ),
        Mistake(
            "on the way back the shift is undone, but the scale is applied once more.",
            _coupling(back=lambda v, s, b: (v - b) * s.exp()),
        ),
        Mistake(
            "the network gives the logarithm of the scale. Multiplying by it may turn space "
            "around, or make it flat.",
            _coupling(lambda v, s, b: v * s + b, lambda v, s, b: (v - b) / s),
        ),
        Mistake(
            "the shift is added before the scale, and undone after it.",
            _coupling(lambda v, s, b: (v + b) * s.exp(), lambda v, s, b: v * (-s).exp() - b),
        ),
        Mistake(
            "the halves are exchanged: the first one goes to the network and stays as it is.",
            _coupling(first=1),
        ),
        Mistake(
            "log-scale and shift are exchanged: the network gives the log-scale first.",
            lambda x, net, inverse: _coupling()(x, lambda h: net(h)[::-1], inverse),
        ),
        Mistake(
            "the halves are joined in the wrong order: the first one stays the first.",
            _coupling(join=lambda parts: torch.cat(parts[::-1], 1)),
        ),
        Mistake(
            "the coordinates are split into even and odd ones. Here it is the first and the "
            "second half.",
            _coupling(split=lambda x: (x[:, ::2], x[:, 1::2]), join=_interleaved),
        ),
        Mistake(
            "only the half that changes is returned. The other one belongs to the sample too.",
            _coupling(join=lambda parts: parts[1]),
        ),
        Mistake(
            "the argument `inverse` is not used: this is always the way there.",
            lambda x, net, inverse: _coupling()(x, net, False),
        ),
    ),
)

# 5 flow_score


def _score_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, label in (((4, 2), "points"), (IMAGES, "images")):
        centre = draw(math.prod(shape[1:])).requires_grad_()
        log_prob, exact, x = _two_peaks(centre), _two_peaks_score(centre), draw(*shape)
        eps = draw(*shape)
        answer = _walk(lambda y, s, exact=exact: exact(y, s).detach(), x)
        yield Case(f"a sampler, {label}", (log_prob, _walk, x), answer)
        train = _training(centre, eps)
        yield Case(f"training, {label}", (log_prob, train, x), train(exact, x).detach())


def _two_peaks(centre: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Log-density of peaks of variance 1/4 at plus and minus a centre, with noise sigma."""

    def log_prob(x: Tensor, sigma: Tensor) -> Tensor:
        points, variance = x.flatten(1), 0.25 + sigma**2
        logs = [
            -(points - sign * centre.to(x)).square().sum(1) / (2 * variance) for sign in (1, -1)
        ]
        norm = points.shape[1] / 2 * (2 * math.pi * variance).log() + math.log(2)
        return torch.logaddexp(*logs) - norm

    return log_prob


def _two_peaks_score(centre: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Its score in closed form: it pulls to centre * tanh(x centre / variance)."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        points, middle = x.flatten(1), centre.to(x)
        variance = (0.25 + sigma**2)[:, None]
        side = torch.tanh((points * middle).sum(1, keepdim=True) / variance)
        return ((side * middle - points) / variance).reshape(x.shape)

    return score


@torch.no_grad()
def _walk(score: Any, x: Tensor) -> Tensor:
    """A sampler: a few steps of Euler's method down the noise levels, without gradients."""
    for s, s_next in pairwise((3.0, 1.5, 0.7, 0.2)):
        gradient = _asked(score, x, x.new_full((len(x),), s))
        if torch.is_grad_enabled():
            raise ValueError("the sampler runs without gradients, and score(x, sigma) has switched "
                             "them on for what follows")  # fmt: skip
        if gradient.requires_grad:
            raise ValueError("the sampler runs without gradients, and got a score that keeps the "
                             "graph of its computation: memory grows with every step")  # fmt: skip
        x = x + (s - s_next) * s * gradient
    return x


def _training(centre: Tensor, eps: Tensor) -> Callable[[Any, Tensor], Tensor]:
    """One step of training: the gradient of the loss of score matching in the weights."""

    def train(score: Any, x: Tensor) -> Tensor:
        sigma = torch.linspace(0.3, 2, len(x)).to(x)
        noise = eps.to(x)
        gradient = _asked(score, x + per_sample(sigma, x) * noise, sigma)
        loss = (per_sample(sigma, x) * gradient + noise).square().mean()
        return torch.autograd.grad(loss, centre)[0].to(x)

    return train


def _asked(score: Any, x: Tensor, sigma: Tensor) -> Tensor:
    """The score, if it is of the shape of x."""
    gradient = score(x, sigma)
    if not isinstance(gradient, Tensor) or gradient.shape != x.shape:
        got = _shape(gradient) if isinstance(gradient, Tensor) else kind(gradient)
        raise ValueError(f"score(x, sigma) must be a tensor of shape {_shape(x)}, as x; got {got}")
    return gradient


def _scored(
    scalar: Callable[[Tensor], Tensor] = lambda log_p: log_p.sum(),
    after: Callable[[Tensor, Tensor], Tensor] = lambda gradient, sigma: gradient,
    enable: Callable[[], Any] = torch.enable_grad,
    graph: Callable[[bool], bool] = lambda training: training,
) -> Callable[..., Tensor]:
    """flow_score with another scalar to differentiate, another factor, or other modes."""

    def wrong(log_prob: Any, task: Any, x: Tensor) -> Tensor:
        def score(x: Tensor, sigma: Tensor) -> Tensor:
            training = torch.is_grad_enabled()
            with enable():
                x = x.detach().requires_grad_()
                total = scalar(log_prob(x, sigma))
            (gradient,) = torch.autograd.grad(total, x, create_graph=graph(training))
            return after(gradient, per_sample(sigma, x))

        return task(score, x)

    return wrong


def _left_on(log_prob: Any, task: Any, x: Tensor) -> Tensor:
    """flow_score that switches gradients on, and leaves them so."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        x = x.detach().requires_grad_()
        total = log_prob(x, sigma).sum()
        return torch.autograd.grad(total, x, create_graph=training)[0]

    return task(score, x)


flow_score = Checker(
    chapter="score_flows",
    name="flow_score",
    title="A score for sampler and trainer",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=with_single(_score_cases),
    mistakes=(
        Mistake(
            "the sampler has gradients switched off, and then there is nothing to differentiate. "
            "Switch them on for the density.",
            _scored(enable=contextlib.nullcontext),
        ),
        Mistake(
            "the sampler is served, but nothing can be trained: the score has no graph. While "
            "training, ask for one: the loss differentiates once more.",
            _scored(graph=lambda training: False),
        ),
        Mistake(
            "the graph of the score is kept in the sampler too. Keep it only where gradients are "
            "on when score is called: ask in score, before you switch them on.",
            _scored(graph=lambda training: True),
        ),
        Mistake(
            "gradients are switched on and stay on. Switch them on for a block, `with`, that ends.",
            _left_on,
        ),
        Mistake(
            "log_prob gives one number for each sample, and a gradient wants a single number. Sum "
            "them: no sample changes the density of another.",
            _scored(lambda log_p: log_p),
        ),
        Mistake(
            "the mean over the batch is differentiated. It makes every score smaller by the "
            "number of samples: sum.",
            _scored(lambda log_p: log_p.mean()),
        ),
        Mistake(
            "the sign is wrong: the loss is minus the log-density, the score its gradient itself.",
            _scored(lambda log_p: -log_p.sum()),
        ),
        Mistake(
            "the density is differentiated. The score is the gradient of its logarithm.",
            _scored(lambda log_p: log_p.exp().sum()),
        ),
        Mistake(
            "this is sigma times the score. The tasks know sigma, and want the score itself.",
            _scored(after=lambda gradient, sigma: sigma * gradient),
        ),
        Mistake(
            "this is the predicted noise, minus sigma times the score.",
            _scored(after=lambda gradient, sigma: -sigma * gradient),
        ),
        Mistake(
            "this is sigma^2 times the score, the way from x to the data.",
            _scored(after=lambda gradient, sigma: sigma**2 * gradient),
        ),
        Mistake(
            "the score is brought to length 1. Its length says how far the data are.",
            _scored(
                after=lambda gradient, sigma: (
                    gradient / gradient.flatten(1).norm(dim=1).reshape(sigma.shape)
                )
            ),
        ),
    ),
)

# 6 posterior_moments


def _moment_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, d, path, label in (
        (4, 2, "VP", "variance-preserving"),
        (3, 3, "VE", "the data keep their scale"),
        (5, 1, "linear", "the straight path, single numbers"),
    ):
        sigma = torch.linspace(0.35, 0.85, n).double() + 0.01 * seed
        alpha = {"VP": (1 - sigma**2).sqrt(), "VE": torch.ones_like(sigma), "linear": 1 - sigma}
        sigma = 2 * sigma if path == "VE" else sigma
        root = draw(3, d, d) / 2
        peaks = 1.5 * draw(3, d), root @ root.mT + 0.1 * torch.eye(d).double(), draw(3).softmax(0)
        xt, a = draw(n, d), alpha[path]
        asked = [_slopes(*row, *peaks) for row in zip(xt, a, sigma, strict=True)]
        right = [_posterior(*row, *peaks) for row in zip(xt, a, sigma, strict=True)]
        score, hessian = map(torch.stack, zip(*asked, strict=True))
        mean, cov = map(torch.stack, zip(*right, strict=True))
        yield Case(label, (xt, score, hessian, a, sigma), (mean, cov), tolerance=1e-7)


def _shares(x: Tensor, means: Tensor, covs: Tensor, weights: Tensor) -> Tensor:
    """Share of each Gaussian in the density at x, (K,)."""
    away = torch.einsum("ki,kij,kj->k", x - means, torch.linalg.inv(covs), x - means)
    return (weights.log() - (away + torch.linalg.slogdet(covs).logabsdet) / 2).softmax(0)


def _noised(a: Tensor, s: Tensor, means: Tensor, covs: Tensor) -> tuple[Tensor, Tensor]:
    return a * means, a**2 * covs + s**2 * torch.eye(len(means[0])).to(covs)


def _slopes(x: Tensor, a: Tensor, s: Tensor, means: Tensor, covs: Tensor, w: Tensor) -> Any:
    """Score (D,) and Hessian of the log-density (D, D) of a noised mixture at one x."""
    means, covs = _noised(a, s, means, covs)
    share, precision = _shares(x, means, covs, w), torch.linalg.inv(covs)
    each = torch.einsum("kij,kj->ki", precision, means - x)
    score = share @ each
    second = torch.einsum("k,ki,kj->ij", share, each, each)
    return score, second - torch.einsum("k,kij->ij", share, precision) - score.outer(score)


def _posterior(x: Tensor, a: Tensor, s: Tensor, means: Tensor, covs: Tensor, w: Tensor) -> Any:
    """Mean (D,) and covariance (D, D) of x0 given x_t = x: each Gaussian conditioned by itself."""
    centres, noisy = _noised(a, s, means, covs)
    share, gain = _shares(x, centres, noisy, w), a * covs @ torch.linalg.inv(noisy)
    each = means + torch.einsum("kij,kj->ki", gain, x - centres)
    inner = covs - a * gain @ covs
    mean = share @ each
    second = torch.einsum("k,kij->ij", share, inner + each[:, :, None] * each[:, None])
    return mean, second - mean.outer(mean)


def _mean_of(x: Tensor, score: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x + s**2 * score) / a


def _moments(
    mean: Callable[..., Tensor] = _mean_of,
    cov: Callable[..., Tensor] = lambda eye, h, a, s: s**2 / a**2 * (eye + s**2 * h),
) -> Callable[..., Any]:
    """posterior_moments with another mean (of x, score, alpha, sigma) or covariance."""

    def wrong(x: Tensor, score: Tensor, h: Tensor, alpha: Tensor, sigma: Tensor) -> Any:
        eye = torch.eye(x.shape[1]).to(x)
        matrix = cov(eye, h, alpha[:, None, None], sigma[:, None, None])
        return mean(x, score, alpha[:, None], sigma[:, None]), matrix

    return wrong


def _with_outer(x: Tensor, score: Tensor, h: Tensor, alpha: Tensor, sigma: Tensor) -> Any:
    """posterior_moments with the Hessian of the density over the density."""
    return _moments()(x, score, h + score[:, :, None] * score[:, None], alpha, sigma)


posterior_moments = Checker(
    chapter="score_flows",
    name="posterior_moments",
    title="What a density knows about the clean sample",
    kind="derivation",
    difficulty=3,
    minutes=30,
    cases=with_single(_moment_cases),
    mistakes=(
        Mistake(
            "this is the form for paths on which the data keep their scale. Elsewhere alpha "
            "divides: once in the mean, twice in the covariance.",
            _moments(
                lambda x, score, a, s: x + s**2 * score,
                lambda eye, h, a, s: s**2 * (eye + s**2 * h),
            ),
        ),
        Mistake(
            "the covariance is right. The mean is that of alpha x_0: divide by alpha.",
            _moments(lambda x, score, a, s: x + s**2 * score),
        ),
        Mistake(
            "the mean is right. The covariance is that of alpha x_0: what does a factor do to a "
            "covariance?",
            _moments(cov=lambda eye, h, a, s: s**2 * (eye + s**2 * h)),
        ),
        Mistake(
            "the mean is right. In the covariance alpha divides twice, as in every square.",
            _moments(cov=lambda eye, h, a, s: s**2 / a * (eye + s**2 * h)),
        ),
        Mistake(
            "the covariance is right. In the mean sigma stands where its square belongs.",
            _moments(lambda x, score, a, s: (x + s * score) / a),
        ),
        Mistake(
            "the covariance is right. The score has the wrong sign: it points to the data.",
            _moments(lambda x, score, a, s: (x - s**2 * score) / a),
        ),
        Mistake(
            "the covariance is right. In the mean only x is divided by alpha.",
            _moments(lambda x, score, a, s: x / a + s**2 * score),
        ),
        Mistake(
            "the mean is right. The identity is missing in the covariance: far from all data, "
            "where the log-density is nearly a straight line, this would be no uncertainty.",
            _moments(cov=lambda eye, h, a, s: s**4 / a**2 * h),
        ),
        Mistake(
            "the mean is right. The Hessian has the wrong sign: at a peak, where the log-density "
            "bends down, less is uncertain.",
            _moments(cov=lambda eye, h, a, s: s**2 / a**2 * (eye - s**2 * h)),
        ),
        Mistake(
            "the mean is right. In the covariance 1 is added to every entry of the matrix. Add "
            "the identity, which has ones on its diagonal only.",
            _moments(cov=lambda eye, h, a, s: s**2 / a**2 * (1 + s**2 * h)),
        ),
        Mistake(
            "the mean is right. The factor before the bracket of the covariance is a square.",
            _moments(cov=lambda eye, h, a, s: s / a * (eye + s**2 * h)),
        ),
        Mistake(
            "the mean is right. In the covariance the Hessian comes with sigma^2 inside of the "
            "bracket.",
            _moments(cov=lambda eye, h, a, s: s**2 / a**2 * (eye + h)),
        ),
        Mistake(
            "the mean is right. This is the covariance of the noise given x_t. From it follows "
            "that of x_0, since alpha x_0 = x_t - sigma eps.",
            _moments(cov=lambda eye, h, a, s: eye + s**2 * h),
        ),
        Mistake(
            "the mean is right. This is the derivative of the mean in x_t. The covariance is in "
            "proportion to it, with one factor more.",
            _moments(cov=lambda eye, h, a, s: (eye + s**2 * h) / a),
        ),
        Mistake(
            "the mean is right. The product of the score with itself is added to the Hessian. It "
            "cancels when the square of the mean is taken away.",
            _with_outer,
        ),
        Mistake(
            "the two values are exchanged.",
            lambda *args: _moments()(*args)[::-1],
        ),
    ),
)

# 7 curl_share


def _curl_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, d, label in ((4, 3, "a linear field"), (3, 3, "as many samples as coordinates")):
        matrix = draw(d, d)
        share = _antisymmetric(matrix).norm() / matrix.norm()
        yield Case(label, (_linear(matrix), draw(n, d)), share.expand(n).clone(), 1e-6)
    x, matrix = draw(5, 2), draw(2, 2)
    slopes = (x @ matrix.T).cos()[:, :, None] * matrix  # of sin(M x)
    share = _antisymmetric(slopes).norm(dim=(1, 2)) / slopes.norm(dim=(1, 2))
    yield Case("a field that bends", (lambda y: (y @ matrix.T.to(y)).sin(), x), share, 1e-6)
    gradient, turn = _two_peaks_score(draw(4)), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    one = (lambda y: gradient(y, y.new_ones(len(y))), draw(3, 4))
    yield Case("the gradient of a log-density", one, torch.zeros(3).double(), 1e-6)
    yield Case("pure rotation", (_linear(turn), draw(4, 2)), torch.ones(4).double(), 1e-6)


def _linear(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ matrix.T.to(x)


def _antisymmetric(j: Tensor) -> Tensor:
    return (j - j.mT) / 2


def _jacobians(field: Any, x: Tensor) -> Tensor:
    """Jacobian of each sample, (B, D, D)."""
    return torch.stack([jacobian(lambda y: field(y[None])[0], row) for row in x])


def _size(j: Tensor) -> Tensor:
    return j.norm(dim=(1, 2))


def _curl(share: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """curl_share with another number made of the Jacobians (B, D, D)."""
    return lambda field, x: share(_jacobians(field, x))


curl_share = Checker(
    chapter="score_flows",
    name="curl_share",
    title="Is it a gradient?",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=with_single(_curl_cases),
    mistakes=(
        Mistake(
            "everywhere twice the answer: the antisymmetric part is half of the difference.",
            _curl(lambda j: 2 * _size(_antisymmetric(j)) / _size(j)),
        ),
        Mistake(
            "this is the share of the symmetric part, which is 1 for a gradient.",
            _curl(lambda j: _size(j - _antisymmetric(j)) / _size(j)),
        ),
        Mistake(
            "the antisymmetric part is compared with the symmetric one. Compare it with the whole "
            "Jacobian: a pure rotation has no symmetric part.",
            _curl(lambda j: _size(_antisymmetric(j)) / _size(j - _antisymmetric(j))),
        ),
        Mistake(
            "these are the squares. Take the ratio of the norms.",
            _curl(lambda j: (_size(_antisymmetric(j)) / _size(j)) ** 2),
        ),
        Mistake(
            "this is the norm of the antisymmetric part itself. Divide by that of the Jacobian.",
            _curl(lambda j: _size(_antisymmetric(j))),
        ),
        Mistake(
            "one number is given for the whole batch. Each sample has a Jacobian of its own.",
            _curl(lambda j: _antisymmetric(j).norm() / j.norm()),
        ),
        Mistake(
            "the mean over the batch is returned. Return one number for each sample.",
            _curl(lambda j: (_size(_antisymmetric(j)) / _size(j)).mean()),
        ),
        Mistake(
            "the trace is the divergence. What turns is in the difference of the Jacobian and its "
            "transpose.",
            _curl(lambda j: j.diagonal(dim1=1, dim2=2).sum(1) / _size(j)),
        ),
        Mistake(
            "this is the spectral norm, which sees one direction only. Take the Frobenius norm, "
            "the root of the sum of all squares.",
            _curl(
                lambda j: (
                    torch.linalg.matrix_norm(_antisymmetric(j), 2) / torch.linalg.matrix_norm(j, 2)
                )
            ),
        ),
        Mistake(
            "absolute values are added up. The norm is the root of the sum of the squares.",
            _curl(lambda j: _antisymmetric(j).abs().sum((1, 2)) / j.abs().sum((1, 2))),
        ),
        Mistake(
            "the entries above the diagonal are counted, and those below are not.",
            _curl(lambda j: _size(_antisymmetric(j).triu()) / _size(j)),
        ),
        Mistake(
            "the Jacobians of all samples are added up before they are compared.",
            _curl(lambda j: (_antisymmetric(j.sum(0)).norm() / j.sum(0).norm()).expand(len(j))),
        ),
    ),
)

# 8 bits_per_dim


def _bits_cases(seed: int) -> Iterator[Case]:
    for shape, levels, dtype, label in (
        ((4, 1, 8, 8), 256, torch.float64, "grey images"),
        ((3, 3, 4, 4), 256, torch.float32, "colour images, single precision"),
        ((5, 7), 17, torch.float64, "17 grey levels, as in the small digits"),
        ((2, 1, 4, 4), 2, torch.float64, "black and white"),
    ):
        draw, generator = normal(seed), torch.Generator().manual_seed(seed)
        grey = torch.randint(levels, shape, generator=generator)
        # a model of the grey levels themselves; its density is constant within each cell
        log_share = torch.log_softmax(draw(*shape, levels), -1).gather(-1, grey[..., None])[..., 0]
        cells = torch.linspace(-1, 1, levels, dtype=torch.float64)
        width = (cells[1] - cells[0]).item()
        log_prob = (log_share - math.log(width)).flatten(1).sum(1)
        bits = -(log_share / math.log(2)).flatten(1).mean(1)
        x = cells[grey] + width * (torch.rand(shape, generator=generator) - 0.5)
        yield Case(label, (log_prob.to(dtype), x.to(dtype), levels), bits.to(dtype))


def _bits(
    cell: Callable[[int], float] = lambda levels: math.log2((levels - 1) / 2),
    unit: float = math.log(2),
    dims: Callable[[Tensor], int] = lambda x: x[0].numel(),
    sign: int = -1,
) -> Callable[..., Tensor]:
    """bits_per_dim with another summand, unit, or number of dimensions."""
    return lambda log_prob, x, levels: sign * log_prob / (dims(x) * unit) + cell(levels)


bits_per_dim = Checker(
    chapter="score_flows",
    name="bits_per_dim",
    title="From nats to bits per dimension",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=_bits_cases,
    mistakes=(
        Mistake(
            "this is for levels that lie 1 apart. Here they are closer, and a log-density depends "
            "on the units.",
            _bits(lambda levels: 0.0),
        ),
        Mistake(
            "the term of the cells has the wrong sign: the narrower they are, the more bits it "
            "takes to name one.",
            _bits(lambda levels: -math.log2((levels - 1) / 2)),
        ),
        Mistake(
            "this is for cells of width 1 / levels, as for pixels in [0, 1].",
            _bits(math.log2),
        ),
        Mistake(
            "the pixels go from -1 to 1, so two neighbouring levels are twice as far apart.",
            _bits(lambda levels: math.log2(levels - 1)),
        ),
        Mistake(
            "there are as many levels as you say, but one distance less between them.",
            _bits(lambda levels: math.log2(levels / 2)),
        ),
        Mistake(
            "the term of the cells is that of 256 levels, however many there are.",
            _bits(lambda levels: math.log2(127.5)),
        ),
        Mistake(
            "the term of the cells is in nats; the other one is in bits.",
            _bits(lambda levels: math.log((levels - 1) / 2)),
        ),
        Mistake(
            "the log-density is still in nats.",
            _bits(unit=1.0),
        ),
        Mistake(
            "all of it is in nats per dimension. A nat has 1 / log(2) bits.",
            _bits(lambda levels: math.log((levels - 1) / 2), 1.0),
        ),
        Mistake(
            "multiplied by log(2), where it divides: one nat is 1.44 bits.",
            _bits(unit=1 / math.log(2)),
        ),
        Mistake(
            "the sign is wrong: what is likely costs few bits.",
            _bits(sign=1),
        ),
        Mistake(
            "the cell counts once for each dimension, as the log-density does. You add it once in "
            "all.",
            lambda log_prob, x, levels: (
                (-log_prob / math.log(2) + math.log2((levels - 1) / 2)) / x[0].numel()
            ),
        ),
        Mistake(
            "these are the bits of the whole sample. Divide by the number of its dimensions.",
            lambda log_prob, x, levels: _bits()(log_prob, x, levels) * x[0].numel(),
        ),
        Mistake(
            "the log-density is not divided by the number of dimensions.",
            _bits(dims=lambda x: 1),
        ),
        Mistake(
            "the samples of the batch are counted as dimensions too.",
            _bits(dims=lambda x: x.numel()),
        ),
        Mistake(
            "the pixels of the last two axes are counted; the channels are dimensions as well.",
            _bits(dims=lambda x: x.shape[-1] * (x.shape[-2] if x.ndim > 2 else 1)),
        ),
        Mistake(
            "the density itself over- or underflows. Stay in logarithms: a product becomes a sum.",
            lambda log_prob, x, levels: (
                -torch.log2(log_prob.exp() * (2 / (levels - 1)) ** x[0].numel()) / x[0].numel()
            ),
        ),
    ),
)

# 9 objectives_experiment

PREDICTIONS = ("likelihood", "score matching", "both alike")
LEVELS = 13
TRUE, WRONG = 0.8, 0.5


def _objective_cases(seed: int) -> Iterator[Case]:
    for gap in (2.0, 1.0):
        sigmas = torch.logspace(-1, 2, LEVELS, dtype=torch.float64)
        x = torch.stack([_noisy_quantiles(gap, s) for s in sigmas])
        log_prob = _peaks_with_share(gap)
        likelihood, score = _gaps(gap, x, sigmas)
        answer = (frozenset(PREDICTIONS), {"likelihood": likelihood, "score matching": score})
        label = f"peaks at +-{gap:g}, of standard deviation 0.5"
        yield Case(label, (log_prob, x, sigmas, TRUE, WRONG), answer, tolerance=1e-6)


def _noisy_quantiles(gap: float, sigma: Tensor, n: int = 1000) -> Tensor:
    """Evenly spread points of the noisy data, as good as many draws."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    right = u < TRUE
    inner = torch.where(right, u / TRUE, (u - TRUE) / (1 - TRUE))
    spread = (0.25 + sigma**2).sqrt() * torch.special.ndtri(inner)
    return torch.where(right, gap, -gap) + spread


def _peaks_with_share(gap: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    def log_prob(x: Tensor, sigma: Tensor, share: float) -> Tensor:
        variance = 0.25 + sigma**2
        logs = [
            math.log(s) - (x - m) ** 2 / (2 * variance)
            for s, m in ((share, gap), (1 - share, -gap))
        ]
        return torch.logaddexp(*logs) - (2 * math.pi * variance).log() / 2

    return log_prob


def _gaps(gap: float, x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Both excess losses in closed form, each (L,)."""
    variance = (0.25 + sigmas**2)[:, None]
    odds = 2 * gap * x / variance
    sides = [torch.sigmoid(odds + math.log(s / (1 - s))) for s in (TRUE, WRONG)]
    # score = (gap (2 side - 1) - x) / variance; the density is (1 - s) e^... / (1 - side)
    score = sigmas**2 * (2 * gap * (sides[0] - sides[1]) / variance).square().mean(1)
    log_rest = [
        math.log(1 - s) + torch.nn.functional.softplus(odds + math.log(s / (1 - s)))
        for s in (TRUE, WRONG)
    ]
    return (log_rest[0] - log_rest[1]).mean(1), score


def _objectives(
    likelihood: Callable[[Tensor, Tensor], Tensor] = lambda p, q: (p - q).mean(1),
    score: Callable[[Tensor, Tensor], Tensor] = lambda a, b: (a - b).square().mean(1),
    factor: Callable[[Tensor], Tensor] = lambda sigma: sigma**2,
    row: int | None = None,
) -> Callable[..., Any]:
    """objectives_experiment with other measures or weights, or one row of the samples alone."""

    def wrong(log_prob: Any, x: Tensor, sigmas: Tensor, true: float, other: float) -> Any:
        if row is not None:
            x, sigmas = x[row].expand_as(x), sigmas[row].expand_as(sigmas)
        points = x.clone().requires_grad_()
        logs = [log_prob(points, sigmas[:, None], share) for share in (true, other)]
        slopes = [torch.autograd.grad(log.sum(), points, retain_graph=True)[0] for log in logs]
        values = likelihood(*(log.detach() for log in logs)), factor(sigmas) * score(*slopes)
        return PREDICTIONS[0], dict(zip(PREDICTIONS, values, strict=False))

    return wrong


def _exchanged(*args: Any) -> Any:
    prediction, measured = _objectives()(*args)
    return prediction, dict(zip(measured, reversed(measured.values()), strict=True))


def _objectives_remark(value: tuple[str, dict[str, Tensor]]) -> str:
    """Hold the prediction against the measurement, and sum the levels up."""
    prediction, measured = value
    likelihood, score = (measured[name] for name in PREDICTIONS[:2])
    total = torch.trapezoid(score, dx=3 * math.log(10) / (LEVELS - 1)).item()
    verb = foretold(prediction, "likelihood")
    return (
        f"at the lowest noise level the wrong share costs {likelihood[0]:.2f} nats of likelihood, "
        f"but {score[0]:.0e} of score matching: the likelihood sees it ({verb}). Over all levels, "
        f"summed with log sigma as the measure, score matching costs {total:.2f}."
    )


objectives_experiment = Checker(
    chapter="score_flows",
    name="objectives_experiment",
    title="Which objective sees the shares?",
    kind="experiment",
    difficulty=3,
    minutes=30,
    cases=_objective_cases,
    mistakes=(
        Mistake(
            "the scores are compared without the weight sigma^2.",
            _objectives(factor=lambda sigma: torch.ones_like(sigma)),
        ),
        Mistake(
            "the weight is sigma; it should be its square.",
            _objectives(factor=lambda sigma: sigma),
        ),
        Mistake(
            "the likelihood is compared with the wrong sign: what does the wrong model cost more?",
            _objectives(lambda p, q: (q - p).mean(1)),
        ),
        Mistake(
            "the likelihood is that of the wrong model alone. Compare it with the true one.",
            _objectives(lambda p, q: -q.mean(1)),
        ),
        Mistake(
            "densities are compared. The likelihood loss is in their logarithms.",
            _objectives(lambda p, q: (p.exp() - q.exp()).mean(1)),
        ),
        Mistake(
            "the likelihood is in bits; nats are wanted.",
            _objectives(lambda p, q: (p - q).mean(1) / math.log(2)),
        ),
        Mistake(
            "the difference of the scores is squared after the mean. Square first.",
            _objectives(score=lambda a, b: (a - b).mean(1).square()),
        ),
        Mistake(
            "the difference of the scores is not squared.",
            _objectives(score=lambda a, b: (a - b).abs().mean(1)),
        ),
        Mistake(
            "the squares of the scores are subtracted. Subtract the scores, then square.",
            _objectives(score=lambda a, b: a.square().mean(1) - b.square().mean(1)),
        ),
        Mistake(
            "each score is the gradient of the mean over the samples, so it is smaller by their "
            "number: sum.",
            _objectives(score=lambda a, b: ((a - b) / a.shape[1]).square().mean(1)),
        ),
        Mistake(
            "both are summed over the samples. Take means.",
            _objectives(lambda p, q: (p - q).sum(1), lambda a, b: (a - b).square().sum(1)),
        ),
        Mistake(
            "the two measures are exchanged.",
            _exchanged,
        ),
        Mistake(
            "the same noise level is measured every time. Each has samples of its own.",
            _objectives(row=0),
        ),
    ),
    remark=_objectives_remark,
)

# 10 sample_log_density


def _sample_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, d, label in ((4, 3, "three coordinates"), (3, 3, "as many samples as coordinates"),
                        (5, 1, "single numbers")):  # fmt: skip
        layers = [_stretch(0.5 * draw(d), draw(d)), _bow(), _stretch(0.5 * draw(d), draw(d))]
        yield _sample_case(layers, draw(n, d), label)
    yield _sample_case([_stretch(0.5 + draw(2).abs(), draw(2))], draw(4, 2), "one layer only")


def _sample_case(layers: list[Any], z: Tensor, label: str) -> Case:
    def through(row: Tensor) -> Tensor:
        row = row[None]
        for layer in layers:
            row = layer(row)[0]
        return row[0]

    x = torch.stack([through(row) for row in z])
    normal_log = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_det = torch.stack([_log_det_of(through, row) for row in z])
    return Case(label, (layers, z), (x, normal_log - log_det))


def _stretch(log_scale: Tensor, shift: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda z: (
        z * log_scale.exp().to(z) + shift.to(z),
        log_scale.sum().to(z).expand(len(z)),
    )


def _bow() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Bends each coordinate by sinh."""
    return lambda z: (z.sinh(), z.cosh().log().sum(1))


def _log_normal(z: Tensor) -> Tensor:
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1)


def _pushed(
    log_p: Callable[..., Tensor], turn: bool = False, result: Callable[..., Any] = lambda z, x: x
) -> Callable[..., Any]:
    """sample_log_density with another density, of (z, x, log-determinants (L, B))."""

    def wrong(layers: Any, z: Tensor) -> tuple[Any, Tensor]:
        x, steps = z, []
        for layer in reversed(layers) if turn else layers:
            x, step = layer(x)
            steps.append(step)
        return result(z, x), log_p(z, x, torch.stack(steps))

    return wrong


sample_log_density = Checker(
    chapter="score_flows",
    name="sample_log_density",
    title="Spot the bug: how likely is this sample?",
    kind="bug",
    difficulty=2,
    minutes=15,
    cases=with_single(_sample_cases),
    mistakes=(
        Mistake(
            "this is still the code with the bugs: it is right for layers that lead from data to "
            "noise. These lead from noise to data.",
            _pushed(lambda z, x, steps: _log_normal(x) + steps.sum(0)),
        ),
        Mistake(
            "one of two bugs is left: the normal density is that of the noise, and it is asked at "
            "the sample.",
            _pushed(lambda z, x, steps: _log_normal(x) - steps.sum(0)),
        ),
        Mistake(
            "one of two bugs is left, the sign: where the flow stretches, density falls.",
            _pushed(lambda z, x, steps: _log_normal(z) + steps.sum(0)),
        ),
        Mistake(
            "the log-determinants are missing: this is how likely the noise was.",
            _pushed(lambda z, x, steps: _log_normal(z)),
        ),
        Mistake(
            "only the last layer counts. The log-determinants of all add up.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps[-1]),
        ),
        Mistake(
            "only the first layer counts. The log-determinants of all add up.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps[0]),
        ),
        Mistake(
            "the layers are run from the last to the first. That is the order of the way back.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps.sum(0), turn=True),
        ),
        Mistake(
            "the log-determinants are averaged over the layers. They add up.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps.mean(0)),
        ),
        Mistake(
            "the log-determinants are multiplied. Determinants multiply, their logarithms add up.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps.prod(0)),
        ),
        Mistake(
            "the log-determinants are summed over the batch too.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps.sum()),
        ),
        Mistake(
            "the normal density is averaged over the coordinates. Independent ones multiply, so "
            "their logarithms add up.",
            _pushed(lambda z, x, steps: _log_normal(z) / z.shape[1] - steps.sum(0)),
        ),
        Mistake(
            "this is the density itself; its logarithm is wanted.",
            _pushed(lambda z, x, steps: (_log_normal(z) - steps.sum(0)).exp()),
        ),
        Mistake(
            "the log-density is right, but the first value is the noise. Return the samples.",
            _pushed(lambda z, x, steps: _log_normal(z) - steps.sum(0), result=lambda z, x: z),
        ),
    ),
)

CHECKERS = (
    bent_softplus,
    newton_inverse,
    plu_inverse,
    affine_coupling,
    flow_score,
    posterior_moments,
    curl_share,
    bits_per_dim,
    objectives_experiment,
    sample_log_density,
)
