"""Checks of the exercises on reflow and optimal transport.

Right answers come from exact assignments, from plain scaling in arithmetic that cannot underflow,
from maps that are chosen first, and from samples whose moments are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.comparing import kind
from course_lib.check.questions import (
    IMAGES,
    SHAPES,
    foretold,
    normal,
    per_sample,
    weight,
    with_single,
)

__all__ = ["CHECKERS"]


def _assignment(cost: Tensor, maximize: bool = False) -> Tensor:
    """The column for each row of the best assignment, (n,) int64."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.numpy(), maximize=maximize)[1])


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of all pairs, (n, m), in double precision."""
    gaps = x.double().flatten(1)[:, None] - y.double().flatten(1)[None]
    return gaps.square().sum(-1)


# 1 wasserstein_line


def _line_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    six = draw(6)
    for x, y, label in (
        (draw(8), 1 + 0.5 * draw(8), "eight numbers each"),
        (six, six[[3, 0, 5, 1, 4, 2]] + 0.5, "the same numbers, shuffled and moved by 0.5"),
        (draw(9).sign() * 3, draw(9), "numbers that come several times"),
        (draw(1), draw(1), "one number each"),
        (10 + draw(300).float(), draw(300).float(), "300 numbers, single precision"),
    ):
        cost = (x[:, None].double() - y[None].double()) ** 2
        best = cost[torch.arange(len(x)), _assignment(cost)].mean().sqrt()
        yield Case(label, (x, y), best.to(x))


def _line(
    distance: Callable[[Tensor], Tensor] = lambda gap: gap.square().mean().sqrt(),
    x_order: Callable[[Tensor], Tensor] = lambda x: x.sort().values,
    y_order: Callable[[Tensor], Tensor] = lambda y: y.sort().values,
) -> Callable[[Tensor, Tensor], Tensor]:
    """wasserstein_line with another order of the numbers, or another mean of the gaps."""
    return lambda x, y: distance(x_order(x) - y_order(y))


wasserstein_line = Checker(
    chapter="reflow_ot",
    name="wasserstein_line",
    title="The distance of two samples on the line",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=_line_cases,
    mistakes=(
        Mistake(
            "the numbers are paired as they come, and their paths cross. Another pairing is "
            "cheaper.",
            _line(x_order=lambda x: x, y_order=lambda y: y),
        ),
        Mistake(
            "only the first sample is sorted.",
            _line(y_order=lambda y: y),
        ),
        Mistake(
            "only the second sample is sorted.",
            _line(x_order=lambda x: x),
        ),
        Mistake(
            "the two samples are sorted in opposite directions: this is the dearest pairing.",
            _line(y_order=lambda y: y.sort(descending=True).values),
        ),
        Mistake(
            "this is the square of the distance. The root is missing.",
            _line(lambda gap: gap.square().mean()),
        ),
        Mistake(
            "the squares are summed. Each number weighs 1 / N: take their mean.",
            _line(lambda gap: gap.square().sum().sqrt()),
        ),
        Mistake(
            "the squares are summed, and the root is missing as well.",
            _line(lambda gap: gap.square().sum()),
        ),
        Mistake(
            "this is W1, the mean of the absolute gaps. W2 squares them, and takes the root of the "
            "mean.",
            _line(lambda gap: gap.abs().mean()),
        ),
        Mistake(
            "the mean is taken before the square, so that gaps of opposite sign cancel. This is "
            "the distance of the two means.",
            _line(lambda gap: gap.mean().square().sqrt()),
        ),
        Mistake(
            "gaps of opposite sign cancel, for they are not squared.",
            _line(lambda gap: gap.mean()),
        ),
        Mistake(
            "the division by N comes after the root. It belongs under it.",
            _line(lambda gap: gap.square().sum().sqrt() / len(gap)),
        ),
        Mistake(
            "this is the largest gap. All of them count.",
            _line(lambda gap: gap.abs().max()),
        ),
        Mistake(
            "all pairs are averaged, as if the two were drawn independently. The cheapest pairing "
            "has one partner for each number.",
            lambda x, y: (x[:, None] - y[None]).square().mean().sqrt(),
        ),
        Mistake(
            "each number takes the nearest of the other sample, and some are taken twice, others "
            "never.",
            lambda x, y: (x[:, None] - y[None]).square().amin(1).mean().sqrt(),
        ),
        Mistake(
            "this is the distance of two normal distributions with the same means and spreads as "
            "the samples.",
            lambda x, y: torch.hypot(
                x.mean() - y.mean(), x.std(correction=0) - y.std(correction=0)
            ),
        ),
        Mistake(
            "these are places, not numbers: argsort says where the sorted numbers stood.",
            lambda x, y: (x.argsort() - y.argsort()).to(x).square().mean().sqrt(),
        ),
        Mistake(
            "torch gives two things back from a sort: the sorted numbers, and the places that they "
            "came from. You need the first.",
            lambda x, y: (x.sort() - y.sort()).square().mean().sqrt(),
        ),
    ),
)

# 2 pair_optimally


def _pair_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in (
        ((6, 2), torch.float64, "six points of the plane"),
        ((5, 5), torch.float64, "as many samples as coordinates"),
        ((64, 2), torch.float64, "64 points of the plane"),
        ((12, 1, 4, 4), torch.float32, "images, single precision"),
    ):
        x0, eps = 2 * draw(*shape).to(dtype), draw(*shape).to(dtype)
        labels = draw(shape[0]).argsort() // 2 + 1  # most classes come twice
        right = x0.clone(), eps[_assignment(_squared(x0, eps))], labels.clone()
        yield Case(label, (x0, eps, labels), right)


Paired = tuple[Tensor, Tensor, Tensor]


def _paired(
    result: Callable[[Tensor, Tensor, Tensor, Tensor], Paired] = lambda x0, eps, labels, p: (
        (x0, eps[p], labels)
    ),
    columns: Callable[[Tensor, Tensor], Tensor] = lambda x0, eps: _assignment(_squared(x0, eps)),
) -> Callable[..., Paired]:
    """pair_optimally with another use of the assignment p, or with other columns."""
    return lambda x0, eps, labels: result(x0, eps, labels, columns(x0, eps))


def _greedy(x0: Tensor, eps: Tensor) -> Tensor:
    """Row after row takes the nearest noise that is left."""
    cost, columns = _squared(x0, eps), []
    for i in range(len(cost)):
        columns.append(int(cost[i].argmin()))
        cost[:, columns[-1]] = torch.inf
    return torch.tensor(columns)


def _within(x0: Tensor, eps: Tensor, labels: Tensor) -> Paired:
    """Pair each class for itself."""
    paired = eps.clone()
    for label in labels.unique():
        own = labels == label
        paired[own] = eps[own][_assignment(_squared(x0[own], eps[own]))]
    return x0, paired, labels


def _ranks(x0: Tensor, eps: Tensor) -> Tensor:
    """Pair by the order of the first coordinates."""
    a, b = x0.flatten(1)[:, 0], eps.flatten(1)[:, 0]
    return b.argsort()[a.argsort().argsort()]


pair_optimally = Checker(
    chapter="reflow_ot",
    name="pair_optimally",
    title="Pair a batch by optimal transport",
    kind="implementation",
    difficulty=2,
    minutes=12,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "the noise stays as it was drawn. Of what scipy returns, the first part only counts "
            "the rows; the second says which column each row gets.",
            _paired(lambda x0, eps, labels, p: (x0, eps, labels)),
        ),
        Mistake(
            "this is the inverse permutation: the columns say which noise a sample gets, not "
            "which sample a noise gets. Are the rows of your cost the data?",
            _paired(lambda x0, eps, labels, p: (x0, eps[p.argsort()], labels)),
        ),
        Mistake(
            "the labels went with the noise. They say what the data are, so they stay.",
            _paired(lambda x0, eps, labels, p: (x0, eps[p], labels[p])),
        ),
        Mistake(
            "the right pairs, but in another order: you moved the data and their labels. Leave "
            "them, and move the noise.",
            _paired(
                lambda x0, eps, labels, p: (x0[p.argsort()], eps, labels[p.argsort()]),
            ),
        ),
        Mistake(
            "the data moved to their noise, but the labels did not go with them: most samples now "
            "have the label of another. Move the noise.",
            _paired(lambda x0, eps, labels, p: (x0[p.argsort()], eps, labels)),
        ),
        Mistake(
            "the columns are those of the noise; they are applied to the data, and the labels did "
            "not even follow.",
            _paired(lambda x0, eps, labels, p: (x0[p], eps, labels)),
        ),
        Mistake(
            "the columns are those of the noise; you applied them to the data and their labels.",
            _paired(lambda x0, eps, labels, p: (x0[p], eps, labels[p])),
        ),
        Mistake(
            "all three were moved in the same way, so the pairs are still those that came.",
            _paired(lambda x0, eps, labels, p: (x0[p], eps[p], labels[p])),
        ),
        Mistake(
            "the cost is the distance. Square it: else this is another transport problem.",
            _paired(columns=lambda x0, eps: _assignment(_squared(x0, eps).sqrt())),
        ),
        Mistake(
            "the cost is the sum of absolute gaps. Square them before they are summed.",
            _paired(
                columns=lambda x0, eps: _assignment(
                    (x0.double().flatten(1)[:, None] - eps.double().flatten(1)[None]).abs().sum(-1)
                )
            ),
        ),
        Mistake(
            "this pairing costs the most, not the least. Is a sign turned? An inner product must "
            "be large.",
            _paired(columns=lambda x0, eps: _assignment(_squared(x0, eps), maximize=True)),
        ),
        Mistake(
            "each sample takes its nearest noise: some noise is used twice, other never. Then the "
            "noise of the pairs is no longer normal.",
            _paired(columns=lambda x0, eps: _squared(x0, eps).argmin(1)),
        ),
        Mistake(
            "each noise takes its nearest sample: some data are used several times, other never.",
            lambda x0, eps, labels: (
                x0[near := _squared(x0, eps).argmin(0)],
                eps,
                labels[near],
            ),
        ),
        Mistake(
            "scipy returns two arrays, rows and columns. As an index the two pick single numbers; "
            "you need the columns alone.",
            _paired(lambda x0, eps, labels, p: (x0, eps[torch.arange(len(p)), p], labels)),
        ),
        Mistake(
            "each class is paired for itself. Training with labels wants that; here the sum over "
            "the whole batch is to be least.",
            _within,
        ),
        Mistake(
            "one sample after the other takes the nearest noise that is left. The last ones pay "
            "for that: the sum of all is to be least.",
            _paired(columns=_greedy),
        ),
        Mistake(
            "the order of the first coordinate decides. That is right on the line only.",
            _paired(columns=_ranks),
        ),
        Mistake(
            "images have three axes of coordinates, and the gaps are summed over the last only. "
            "Make rows of the samples first.",
            _paired(
                columns=lambda x0, eps: _assignment((x0[:, None] - eps[None]).square().sum(-1))
            ),
        ),
    ),
)

# 3 entropic_objective


def _entropic_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, m, epsilon, label in (
        (3, 4, 0.5 + 0.1 * seed, "every entry of the plan is positive"),
        (5, 5, 2.0, "a plan with half of its entries 0"),
        (6, 6, 0.1, "an assignment: one entry in each row"),
    ):
        cost, plan = draw(n, m).square(), draw(n, m).exp()
        if n == 5:
            plan = plan * (torch.arange(5)[:, None] + torch.arange(5) + seed).remainder(2)
        if n == 6:
            plan = torch.eye(6, dtype=torch.float64)[draw(6).argsort()]
        plan = plan / plan.sum()
        right = sum(c * p + (epsilon * p * p.log() if p > 0 else 0)
                    for c, p in zip(cost.flatten(), plan.flatten(), strict=True))  # fmt: skip
        # A tiny number added within the logarithm is good enough.
        yield Case(label, (cost, plan, epsilon), right, tolerance=1e-6)


def _entropic(
    entropy: Callable[[Tensor], Tensor] = lambda p: torch.special.entr(p).sum(),
    total: Callable[[Tensor, Tensor, float], Tensor] = lambda c, h, e: c - e * h,
) -> Callable[..., Tensor]:
    """entropic_objective with another entropy, or another sum of (cost, entropy, epsilon)."""
    return lambda cost, plan, epsilon: total((cost * plan).sum(), entropy(plan), epsilon)


def _with_nan(p: Tensor) -> Tensor:
    return -(p * p.log()).sum()


def _relative_entropy(p: Tensor) -> Tensor:
    """Minus KL(P | a x b)."""
    return -torch.xlogy(p, p / (p.sum(1, keepdim=True) * p.sum(0))).sum()


entropic_objective = Checker(
    chapter="reflow_ot",
    name="entropic_objective",
    title="Spot the bug: what does Sinkhorn minimise?",
    kind="bug",
    difficulty=1,
    minutes=8,
    cases=with_single(_entropic_cases),
    mistakes=(
        Mistake(
            "this is still the code with the bugs.",
            _entropic(_with_nan, lambda c, h, e: c + e * h),
        ),
        Mistake(
            "one of two bugs is left: where the plan is 0, its logarithm is infinite, and 0 times "
            "that is NaN. Such an entry contributes nothing.",
            _entropic(_with_nan),
        ),
        Mistake(
            "one of two bugs is left, a sign: a plan that is spread more widely must be rewarded, "
            "not punished.",
            _entropic(total=lambda c, h, e: c + e * h),
        ),
        Mistake(
            "epsilon does not multiply the entropy.",
            _entropic(total=lambda c, h, e: c - h),
        ),
        Mistake(
            "epsilon multiplies the cost. It belongs to the entropy.",
            _entropic(total=lambda c, h, e: e * c - h),
        ),
        Mistake(
            "all of it is divided by epsilon. The minimum lies at the same plan, but its value is "
            "another.",
            _entropic(total=lambda c, h, e: c / e - h),
        ),
        Mistake(
            "this has the divergence from the product of the marginals. For given marginals it is "
            "the entropy up to a constant; here the entropy itself is asked for.",
            _entropic(_relative_entropy),
        ),
        Mistake(
            "this is the entropy with another constant, the sum of P (log P - 1), which some use. "
            "The one above has no 1.",
            _entropic(lambda p: torch.special.entr(p).sum() + p.sum()),
        ),
        Mistake(
            "the entropy is the mean of its terms here. It is their sum.",
            _entropic(lambda p: torch.special.entr(p).mean()),
        ),
        Mistake(
            "entries of 0 are dealt with, but the logarithm is no longer multiplied by the plan.",
            _entropic(lambda p: -p[p > 0].log().sum()),
        ),
        Mistake(
            "a 1 is added within the logarithm, and that is not small against the plan.",
            _entropic(lambda p: -(p * p.log1p()).sum()),
        ),
        Mistake(
            "the cost alone is left: the entropy counts too.",
            _entropic(total=lambda c, h, e: c),
        ),
        Mistake(
            "the entropy alone is left: the cost counts too.",
            _entropic(total=lambda c, h, e: -e * h),
        ),
    ),
)

# 4 sinkhorn_log


def _sinkhorn_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, m, least, epsilon, iterations, label in (
        (5, 3, 0.0, 0.5, 2, "epsilon 0.5, two iterations"),
        (4, 4, 0.0, 0.2, 1, "epsilon 0.2, one iteration"),
        (4, 6, 1.0, 1e-3, 20, "epsilon 0.001"),  # e^-1000 is 0 in double precision
    ):
        a, b = draw(n).softmax(0), draw(m).softmax(0)
        cost = least + 2 * draw(n, m).sigmoid()
        right = _scaled_plan(a, b, cost, epsilon, iterations)
        yield Case(label, (a, b, cost, epsilon, iterations), right)


def _scaled_plan(a: Tensor, b: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn's scaling of the kernel, with decimal numbers, whose exponents have no end."""
    with localcontext() as context:
        context.prec = 40
        width, (rows, columns, costs) = Decimal(epsilon), map(_decimals, (a, b, cost))
        kernel = [[(-c / width).exp() for c in row] for row in costs]
        turned = list(zip(*kernel, strict=True))
        v = columns
        for _ in range(iterations):
            u = [p / _dot(row, v) for p, row in zip(rows, kernel, strict=True)]
            v = [q / _dot(column, u) for q, column in zip(columns, turned, strict=True)]
        plan = [[float(p * k * q) for k, q in zip(row, v, strict=True)]
                for p, row in zip(u, kernel, strict=True)]  # fmt: skip
    return torch.tensor(plan, dtype=torch.float64)


def _decimals(x: Tensor) -> Any:
    """The numbers of a tensor as decimals, exactly, in nested lists."""
    return [_decimals(row) for row in x] if x.ndim else Decimal(x.item())


def _dot(a: Any, b: Any) -> Decimal:
    return sum((p * q for p, q in zip(a, b, strict=True)), Decimal(0))


def _sinkhorn(
    f: Callable[..., Tensor] | None = None,
    g: Callable[..., Tensor] | None = None,
    plan: Callable[..., Tensor] | None = None,
    together: bool = False,
    columns_first: bool = False,
    rounds: int | None = None,
) -> Callable[..., Tensor]:
    """sinkhorn_log with another update, a function of (potential, log-weights, cost, epsilon).

    `together`: g uses the old f. `plan` is a function of (f, g, log a, log b, cost, epsilon).
    """

    def wrong(a: Tensor, b: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
        log_a, log_b, x, y = a.log(), b.log(), torch.zeros_like(a), torch.zeros_like(b)
        to_f, to_g = f or _soft_min, g or f or _soft_min
        for _ in range(rounds or iterations):
            old = x
            if columns_first:
                y = to_g(x, log_a, cost.mT, epsilon)
            x = to_f(y, log_b, cost, epsilon)
            if not columns_first:
                y = to_g(old if together else x, log_a, cost.mT, epsilon)
        return (plan or _plan)(x, y, log_a, log_b, cost, epsilon)

    return wrong


def _soft_min(g: Tensor, log_b: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    return -epsilon * (log_b + (g - cost) / epsilon).logsumexp(1)


def _plan(f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float) -> Tensor:
    return (log_a[:, None] + log_b + (f[:, None] + g - cost) / e).exp()


def _unweighted(a: Tensor, b: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The other way to write it, P = exp((f + g - C) / epsilon), from f = g = 0."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        f = epsilon * (a.log() - ((g - cost) / epsilon).logsumexp(1))
        g = epsilon * (b.log() - ((f - cost.mT) / epsilon).logsumexp(1))
    return ((f[:, None] + g - cost) / epsilon).exp()


def _by_formula(step: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """sinkhorn_log with a step of (f, g, log a, log b, cost, epsilon)."""

    def wrong(a: Tensor, b: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        for _ in range(iterations):
            f, g = step(f, g, a.log(), b.log(), cost, epsilon)
        return _plan(f, g, a.log(), b.log(), cost, epsilon)

    return wrong


@_by_formula
def _with_own_potential(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = -e * (log_b + (f[:, None] + g - cost) / e).logsumexp(1)
    return f, -e * (log_a[:, None] + (f[:, None] + g - cost) / e).logsumexp(0)


@_by_formula
def _with_masses_twice(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = e * (log_a - (log_b + (g - cost) / e).logsumexp(1))
    return f, e * (log_b - (log_a[:, None] + (f[:, None] - cost) / e).logsumexp(0))


@_by_formula
def _along_wrong_axes(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = -e * (log_b + (g - cost) / e).logsumexp(0)
    return f, -e * (log_a[:, None] + (f[:, None] - cost) / e).logsumexp(1)


@_by_formula
def _without_axis(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = -e * (log_b + (g - cost) / e).logsumexp(1)
    return f, -e * (log_a[:, None] + (f - cost) / e).logsumexp(0)


@_by_formula
def _without_any_axis(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = -e * (log_b + (g - cost) / e).logsumexp(1)
    return f, -e * (log_a + (f - cost) / e).logsumexp(0)


@_by_formula
def _with_flat_masses(
    f: Tensor, g: Tensor, log_a: Tensor, log_b: Tensor, cost: Tensor, e: float
) -> tuple[Tensor, Tensor]:
    f = -e * (log_b + (g - cost) / e).logsumexp(1)
    return f, -e * (log_a + (f[:, None] - cost) / e).logsumexp(0)


def _scaling(start: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Sinkhorn with the kernel itself, from a start v of the columns' weights."""

    def wrong(a: Tensor, b: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
        kernel, v = (-cost / epsilon).exp(), start(b)
        for _ in range(iterations):
            u = a / (kernel @ v)
            v = b / (kernel.mT @ u)
        return u[:, None] * kernel * v

    return wrong


sinkhorn_log = Checker(
    chapter="reflow_ot",
    name="sinkhorn_log",
    title="Sinkhorn that cannot underflow",
    kind="implementation",
    difficulty=3,
    minutes=25,
    cases=with_single(_sinkhorn_cases),
    mistakes=(
        Mistake(
            "for a small epsilon the exponentials underflow to 0, and what is divided by them, or "
            "their logarithm, is infinite. Stay in logarithms all the way.",
            _scaling(lambda b: b),
        ),
        Mistake(
            "this is the scaling without logarithms, from equal weights. It underflows for a "
            "small epsilon, and it starts at another plan.",
            _scaling(torch.ones_like),
        ),
        Mistake(
            "the iteration is right, but it starts at another plan: with both potentials 0 the "
            "plan must be a_i b_j e^(-C/epsilon). Where do the weights enter?",
            _unweighted,
        ),
        Mistake(
            "the potential lacks its epsilon: f and g are costs, and the logarithm is a pure "
            "number.",
            _sinkhorn(lambda g, w, c, e: -(w + (g - c) / e).logsumexp(1)),
        ),
        Mistake(
            "the sum is not over e^(.../epsilon): divide by epsilon before the exponential.",
            _sinkhorn(lambda g, w, c, e: -e * (w + g - c).logsumexp(1)),
        ),
        Mistake(
            "epsilon is left out of the updates.",
            _sinkhorn(lambda g, w, c, e: -(w + g - c).logsumexp(1)),
        ),
        Mistake(
            "the potentials have the wrong sign: a row that has too much mass needs a lower one.",
            _sinkhorn(lambda g, w, c, e: e * (w + (g - c) / e).logsumexp(1)),
        ),
        Mistake(
            "the cost has the wrong sign in the updates: what is dear gets little mass.",
            _sinkhorn(lambda g, w, c, e: -e * (w + (g + c) / e).logsumexp(1)),
        ),
        Mistake(
            "the cost has the wrong sign in the plan alone.",
            _sinkhorn(plan=lambda f, g, w, v, c, e: _plan(f, g, w, v, -c, e)),
        ),
        Mistake(
            "the cost has the wrong sign, in the updates and in the plan: the dearest ways come "
            "first.",
            lambda a, b, cost, e, n: _sinkhorn()(a, b, -cost, e, n),
        ),
        Mistake(
            "the sums do not see the weights: each term has the weight of the point that is summed "
            "over.",
            _sinkhorn(lambda g, w, c, e: -e * ((g - c) / e).logsumexp(1)),
        ),
        Mistake(
            "the weights are added as they are. Under the exponential they need a logarithm.",
            _sinkhorn(lambda g, w, c, e: -e * (w.exp() + (g - c) / e).logsumexp(1)),
        ),
        Mistake(
            "the log-weights are divided by epsilon too, as if they were costs.",
            _sinkhorn(lambda g, w, c, e: -e * ((w + g - c) / e).logsumexp(1)),
        ),
        Mistake(
            "in the plan the weights a_i b_j are missing.",
            _sinkhorn(plan=lambda f, g, w, v, c, e: ((f[:, None] + g - c) / e).exp()),
        ),
        Mistake(
            "this is the exponent of the plan alone.",
            _sinkhorn(plan=lambda f, g, w, v, c, e: (f[:, None] + g - c) / e),
        ),
        Mistake(
            "these are the logarithms of the plan.",
            _sinkhorn(plan=lambda f, g, w, v, c, e: _plan(f, g, w, v, c, e).log()),
        ),
        Mistake(
            "the old potential is left out of the sum: f must know g, and g must know f.",
            _sinkhorn(lambda g, w, c, e: -e * (w - c / e).logsumexp(1)),
        ),
        Mistake(
            "f itself stands in the sum for f, so what comes out is the change of f. Leave it out.",
            _with_own_potential,
        ),
        Mistake(
            "the masses count twice: a_i stands before the exponential already, so it is not in f.",
            _with_masses_twice,
        ),
        Mistake(
            "the sums run along the wrong axes: f has one number for each row, a sum over columns.",
            _along_wrong_axes,
        ),
        Mistake(
            "f has one number for each row. Without a further axis it meets the columns.",
            _without_axis,
        ),
        Mistake(
            "f and a have one number for each row. Without a further axis they meet the columns.",
            _without_any_axis,
        ),
        Mistake(
            "a has one number for each row. Without a further axis it meets the columns.",
            _with_flat_masses,
        ),
        Mistake(
            "both potentials are updated from the old ones. The second must see the new first.",
            _sinkhorn(together=True),
        ),
        Mistake(
            "the columns are made right first, then the rows. Here it is the other way round.",
            _sinkhorn(columns_first=True),
        ),
        Mistake(
            "the weights a and b are exchanged in the updates. The sum over j has the weights b.",
            lambda a, b, cost, e, n: _sinkhorn(
                plan=lambda f, g, w, v, c, e: _plan(f, g, a.log(), b.log(), c, e)
            )(b, a, cost, e, n),
        ),
        Mistake(
            "a and b are exchanged everywhere: the rows of the plan must sum to a.",
            lambda a, b, cost, e, n: _sinkhorn()(b, a, cost, e, n),
        ),
        Mistake(
            "the cost is transposed: f belongs to its rows, so f is a sum over its columns.",
            lambda a, b, cost, e, n: _sinkhorn()(a, b, cost.mT, e, n),
        ),
        Mistake(
            "the plan is transposed: row i is where the mass of point i goes.",
            lambda *args: _sinkhorn()(*args).mT,
        ),
        Mistake(
            "only one iteration is done. Does the function return inside of the loop?",
            _sinkhorn(rounds=1),
        ),
        Mistake(
            "only f is updated, so the rows are right, but the columns are not.",
            _sinkhorn(g=lambda f, w, c, e: torch.zeros_like(c[:, 0])),
        ),
        Mistake(
            "the smallest value stands where its smooth version belongs: this is the limit of a "
            "small epsilon.",
            _sinkhorn(lambda g, w, c, e: (c - g).amin(1)),
        ),
    ),
)

# 5 barycentric_map


def _barycentric_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for n, m, d, label in (
        (6, 4, 2, "uneven weights"),
        (3, 3, 3, "as many points as coordinates"),
        (4, 6, 3, "the independent plan"),
        (5, 5, 2, "an assignment"),
    ):
        a, share, y = draw(n).softmax(0), draw(n, m).softmax(1), 3 * draw(m, d)
        if "independent" in label:
            share = share[:1].expand(n, m)
        if "assignment" in label:
            a, share = torch.full_like(a, 1 / n), torch.eye(n).double()[draw(n).argsort()]
        plan = a[:, None] * share
        right = torch.stack([sum(p * row for p, row in zip(s, y, strict=True)) for s in share])
        yield Case(label, (plan, y), right)


barycentric_map = Checker(
    chapter="reflow_ot",
    name="barycentric_map",
    title="From a plan to a map",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=with_single(_barycentric_cases),
    mistakes=(
        Mistake(
            "the rows of the plan do not sum to 1: divide by the mass that leaves each point.",
            lambda plan, y: plan @ y,
        ),
        Mistake(
            "this is right when all points have the same mass 1 / N. They need not.",
            lambda plan, y: len(plan) * plan @ y,
        ),
        Mistake(
            "this divides by the mass that *arrives* at each target. Divide by the mass that "
            "leaves each point.",
            lambda plan, y: (plan / plan.sum(0)) @ y,
        ),
        Mistake(
            "the masses have shape (N,): give them a further axis, or they meet the coordinates.",
            lambda plan, y: plan @ y / plan.sum(1),
        ),
        Mistake(
            "the masses have shape (N,): give them a further axis, or they meet the columns of the "
            "plan.",
            lambda plan, y: (plan / plan.sum(1)) @ y,
        ),
        Mistake(
            "this maps the targets back. The rows of the plan belong to the points that move.",
            lambda plan, y: (plan / plan.sum(0)).mT @ y,
        ),
        Mistake(
            "each point goes to its most likely target. The map takes the mean of all of them.",
            lambda plan, y: y[plan.argmax(1)],
        ),
        Mistake(
            "a softmax makes rows that sum to 1, but not the right ones: the plan holds "
            "probabilities, not their logarithms.",
            lambda plan, y: plan.softmax(1) @ y,
        ),
        Mistake(
            "multiplied by the mass that leaves each point, where it divides.",
            lambda plan, y: plan.sum(1, keepdim=True) * (plan @ y),
        ),
        Mistake(
            "the mean over the targets is taken. The plan holds the weights already: sum.",
            lambda plan, y: plan @ y / plan.sum(1, keepdim=True) / len(y),
        ),
        Mistake(
            "divided by the number of targets. The weights of a row sum to its mass: divide by "
            "that.",
            lambda plan, y: plan @ y / len(y),
        ),
        Mistake(
            "all points go to the same place, the mean of the targets. Each has a row of its own.",
            lambda plan, y: (plan.sum(0) @ y).expand(len(plan), -1),
        ),
    ),
)

# 6 gaussian_map


def _gaussian_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for d, label in ((2, "in the plane"), (5, "five dimensions"), (3, "variances alone")):
        cov_x, right = _covariance(draw, d), _covariance(draw, d)
        if d == 3:
            cov_x, right = cov_x.diagonal().diag(), right.diagonal().diag()
        cov_y = right @ cov_x @ right
        yield Case(label, (cov_x, (cov_y + cov_y.mT) / 2), right, tolerance=1e-7)
    one = torch.eye(2).double()
    yield Case("the same distribution twice", (cov := _covariance(draw, 2), cov.clone()), one)


def _covariance(draw: Callable[..., Tensor], d: int) -> Tensor:
    """A symmetric matrix with eigenvalues from 0.3 on."""
    x = draw(d, d)
    return x @ x.mT / d + 0.3 * torch.eye(d).double()


def _root(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A power of a symmetric matrix with positive eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values**power @ vectors.mT


def _turned(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A root that lacks the second factor of eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values**power


def _across(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A root with the transpose of the eigenvectors on the wrong side."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors.mT * values**power @ vectors


def _mapped(
    outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """gaussian_map as a product of three, with others outside or inside."""
    return lambda x, y: outer(x) @ inner(x, y) @ outer(x)


def _middle(x: Tensor, y: Tensor) -> Tensor:
    return _root(_root(x) @ y @ _root(x))


gaussian_map = Checker(
    chapter="reflow_ot",
    name="gaussian_map",
    title="The optimal map between two Gaussians",
    kind="derivation",
    difficulty=3,
    minutes=25,
    cases=with_single(_gaussian_cases),
    mistakes=(
        Mistake(
            "this map whitens and colours again. It hits the target distribution, but it is not "
            "symmetric, so it is the gradient of no function, and not the cheapest.",
            lambda x, y: _root(y) @ _root(x, -0.5),
        ),
        Mistake(
            "this is the map of the Cholesky factors. It hits the target distribution, but it is a "
            "triangle, where the optimal one is symmetric.",
            lambda x, y: torch.linalg.solve_triangular(
                torch.linalg.cholesky(x), torch.linalg.cholesky(y), upper=False, left=False
            ),
        ),
        Mistake(
            "the factors stand in the wrong order: A C_x A^T is not C_y.",
            lambda x, y: _root(x, -0.5) @ _root(y),
        ),
        Mistake(
            "this is the root in the middle only. The inverse roots on both sides are missing.",
            _middle,
        ),
        Mistake(
            "an inverse root is missing on the left, so the map is not symmetric.",
            lambda x, y: _middle(x, y) @ _root(x, -0.5),
        ),
        Mistake(
            "an inverse root is missing on the right, so the map is not symmetric.",
            lambda x, y: _root(x, -0.5) @ _middle(x, y),
        ),
        Mistake(
            "all of the inverse stands on the right, so the map is not symmetric. Matrices do not "
            "change places.",
            lambda x, y: _middle(x, y) @ torch.linalg.inv(x),
        ),
        Mistake(
            "all of the inverse stands on the left, so the map is not symmetric. Matrices do not "
            "change places.",
            lambda x, y: torch.linalg.inv(x) @ _middle(x, y),
        ),
        Mistake(
            "the eigenvectors stand on one side only of your roots. In V diag V^T they come twice.",
            lambda x, y: _turned(x, -0.5) @ _turned(_turned(x) @ y @ _turned(x)) @ _turned(x, -0.5),
        ),
        Mistake(
            "in your roots the transpose stands on the wrong side: `eigh` gives eigenvectors as "
            "columns.",
            lambda x, y: _across(x, -0.5) @ _across(_across(x) @ y @ _across(x)) @ _across(x, -0.5),
        ),
        Mistake(
            "a matrix for `eigh` must be symmetric, for it reads one half only. C_y times the "
            "inverse of C_x is not.",
            lambda x, y: _root(y @ torch.linalg.inv(x)),
        ),
        Mistake(
            "a matrix for `eigh` must be symmetric, for it reads one half only. The inverse of C_x "
            "times C_y is not.",
            lambda x, y: _root(torch.linalg.inv(x) @ y),
        ),
        Mistake(
            "the inverses outside are those of C_x. They must be those of its root.",
            _mapped(lambda x: _root(x, -1), _middle),
        ),
        Mistake(
            "the roots outside are not inverted.",
            _mapped(_root, _middle),
        ),
        Mistake(
            "without the root in the middle what is left is C_y itself.",
            lambda x, y: y,
        ),
        Mistake(
            "inside of the root C_x and C_y have changed places.",
            _mapped(lambda x: _root(x, -0.5), lambda x, y: _root(_root(y) @ x @ _root(y))),
        ),
        Mistake(
            "inside of the root C_x itself stands on both sides. It must be its root.",
            _mapped(lambda x: _root(x, -0.5), lambda x, y: _root(x @ y @ x)),
        ),
        Mistake(
            "this is the way back, from y to x.",
            lambda x, y: _root(y, -0.5) @ _middle(y, x) @ _root(y, -0.5),
        ),
        Mistake(
            "this is symmetric, but it hits the target distribution only where the two covariances "
            "commute. Start from A C_x A = C_y.",
            lambda x, y: _root(x, -0.25) @ _root(y) @ _root(x, -0.25),
        ),
        Mistake(
            "this is the root of C_y times the inverse of C_x. It is right when the two commute, "
            "but in general it is not even symmetric.",
            lambda x, y: _root(x) @ _root(_root(x, -0.5) @ y @ _root(x, -0.5)) @ _root(x, -0.5),
        ),
        Mistake(
            "inside of the root the roots of C_x are inverted too. They are not.",
            _mapped(
                lambda x: _root(x, -0.5), lambda x, y: _root(_root(x, -0.5) @ y @ _root(x, -0.5))
            ),
        ),
        Mistake(
            "the map that whitens and colours again was made symmetric by force. Now it does not "
            "hit the target.",
            lambda x, y: (_root(y) @ _root(x, -0.5) + _root(x, -0.5) @ _root(y)) / 2,
        ),
        Mistake(
            "the variances alone count here. What about the correlations?",
            lambda x, y: (y.diagonal() / x.diagonal()).sqrt().diag(),
        ),
        Mistake(
            "the root is taken of each entry. That of a matrix S is the matrix whose square is S.",
            _mapped(
                lambda x: torch.linalg.inv(x.sqrt()),
                lambda x, y: (x.sqrt() @ y @ x.sqrt()).sqrt(),
            ),
        ),
        Mistake(
            "this is the square of the matrix that is asked for when the covariances commute. Take "
            "roots.",
            lambda x, y: y @ torch.linalg.inv(x),
        ),
    ),
)

# 7 make_pairs

PER_SEED = 4  # questions


class _Field:
    """A velocity that wants a time for each sample, and knows the number of its question."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Depends on both arguments; of times four digits count, so single precision will do."""
        _check_times(x, t)
        return torch.sin(x) + per_sample(t.double().round(decimals=4), x) * (1 + x)


def _check_times(x: Tensor, t: Tensor) -> None:
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        got = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else kind(t)
        raise ValueError(f"the velocity wants a time for each sample, a tensor (B,); got {got}")


def _pairs_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    questions = [(shape, dtype, 8, label) for shape, dtype, label in SHAPES[:2]]
    questions += [((4, 2), torch.float64, 1, "one step"), (IMAGES, torch.float64, 4, "four steps")]
    for i, (shape, dtype, steps, label) in enumerate(questions):
        x = eps = draw(*shape).to(dtype)
        velocity = _Field(PER_SEED * seed + i)
        for k in range(steps, 0, -1):
            x = x - velocity(x, x.new_full((len(x),), k / steps)) / steps
        yield Case(label, (velocity, eps, steps), (x, eps.clone()))


def _made(
    start: Callable[[Any, Tensor], Tensor] = lambda velocity, eps: eps,
    time: Callable[[int, int], float] = lambda i, steps: 1 - i / steps,
    sign: int = -1,
    length: Callable[[int], float] = lambda steps: 1 / steps,
    count: Callable[[int], int] = lambda steps: steps,
    place: Callable[[Tensor, Tensor], Tensor] = lambda x, eps: x,
    begin: Callable[[Tensor, Tensor], Tensor] = lambda x, eps: x,
    result: Callable[[Tensor, Tensor], Any] = lambda x, eps: (x, eps),
) -> Callable[..., Any]:
    """make_pairs with another start, time of step i, sign, length or number of steps, or result.

    `place` is where a step asks, `begin` where it begins, of the walk so far and the noise.
    """

    def wrong(velocity: Any, eps: Tensor, steps: int) -> Any:
        x = start(velocity, eps)
        for i in range(count(steps)):
            t = x.new_full((len(x),), time(i, steps))
            x = begin(x, eps) + sign * length(steps) * velocity(place(x, eps), t)
        return result(x, eps)

    return wrong


def _own_draw(velocity: _Field, eps: Tensor) -> Tensor:
    """What a learner's `randn` gives: before each question the checker sets the seed."""
    torch.manual_seed(velocity.number)
    return torch.randn_like(eps)


make_pairs = Checker(
    chapter="reflow_ot",
    name="make_pairs",
    title="Spot the bug: pairs for reflow",
    kind="bug",
    difficulty=2,
    minutes=12,
    cases=_pairs_cases,
    mistakes=(
        Mistake(
            "this is still the code with the bugs.",
            _made(_own_draw, lambda i, steps: i / steps),
        ),
        Mistake(
            "one of two bugs is left: the walk starts at noise of its own, so the data have "
            "nothing to do with the noise they are paired with. Training on that is no reflow.",
            _made(_own_draw),
        ),
        Mistake(
            "one of two bugs is left, in the times: the walk begins at noise, and noise is t = 1.",
            _made(time=lambda i, steps: i / steps),
        ),
        Mistake(
            "the two are exchanged: the first value must be the data.",
            _made(result=lambda x, eps: (eps, x)),
        ),
        Mistake(
            "the walk goes the wrong way: the velocity points from data to noise, and time falls.",
            _made(sign=1),
        ),
        Mistake(
            "this walks from t = 0 up to 1, as if the noise stood at 0.",
            _made(time=lambda i, steps: i / steps, sign=1),
        ),
        Mistake(
            "each step asks at the time where it ends. Euler's method asks where it starts, first "
            "of all at t = 1.",
            _made(time=lambda i, steps: 1 - (i + 1) / steps),
        ),
        Mistake(
            "each step asks in its middle, but with the x of its start.",
            _made(time=lambda i, steps: 1 - (i + 0.5) / steps),
        ),
        Mistake(
            "every step asks at t = 1. Time falls on the way.",
            _made(time=lambda i, steps: 1.0),
        ),
        Mistake(
            "the times fall from 1 to 0 in one step too few: the last step starts at 1 / steps, "
            "not at 0.",
            _made(time=lambda i, steps: 1 - i / max(steps - 1, 1)),
        ),
        Mistake(
            "the velocity is not multiplied by the length of a step.",
            _made(length=lambda steps: 1.0),
        ),
        Mistake(
            "the last step is missing: the walk ends at t = 1 / steps.",
            _made(count=lambda steps: steps - 1),
        ),
        Mistake(
            "there is one step too many: it starts at t = 0, where the data are reached already.",
            _made(count=lambda steps: steps + 1),
        ),
        Mistake(
            "only one step is done. Does the function return inside of the loop?",
            _made(count=lambda steps: 1),
        ),
        Mistake(
            "the velocity is asked at the noise every time. Ask where the walk has come to.",
            _made(place=lambda x, eps: eps),
        ),
        Mistake(
            "each step starts at the noise again. It goes on from where the last one ended.",
            _made(begin=lambda x, eps: eps),
        ),
        Mistake(
            "both values are the data. Keep the noise: does the walk overwrite it?",
            _made(result=lambda x, eps: (x, x)),
        ),
        Mistake(
            "both values are the noise: nothing has moved.",
            _made(result=lambda x, eps: (eps, eps)),
        ),
        Mistake(
            "the data are paired with the noise of another sample. Row i of both belong together.",
            _made(result=lambda x, eps: (x, eps.flip(0))),
        ),
        Mistake(
            "these are all data of one walk and its noise in one tensor. Return two.",
            _made(result=lambda x, eps: torch.stack([x, eps])),
        ),
    ),
)

# 8 straightness_and_energy


def _bent_walks(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    for steps, b, d, bend, label in (
        (draw(4).softmax(0), 5, 3, "any", "an uneven grid"),
        (even, 4, 2, "any", "an even grid"),
        (torch.ones(1).double(), 3, 3, "none", "one step: straight by force"),
        (draw(5).softmax(0), 4, 4, "none", "straight paths, at a steady speed"),
        (draw(3).softmax(0), 4, 2, "along", "straight paths, but not at a steady speed"),
    ):
        mean, off = 2 * draw(b, d), draw(len(steps), b, d)
        if bend == "along":
            off = draw(len(steps), 1, 1) * mean
        yield _walk_case(steps, mean, off * (bend != "none"), label)


def _walk_case(steps: Tensor, mean: Tensor, off: Tensor, label: str) -> Case:
    """Paths whose velocity (S, B, D) is their mean and what is off, once that sums to 0."""
    share = steps[:, None, None]
    off = off - (share * off).sum(0)
    ts = 1 - torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    start = torch.ones_like(mean[None]) - mean / 2
    trajectory = torch.cat([start, -share * (mean + off)]).cumsum(0)
    cost = mean.square().sum() / len(mean)
    extra = (share * off.square()).sum() / len(mean)
    return Case(label, (trajectory, ts), (cost, cost + extra, extra))


def _bending(
    speed: Callable[[Tensor, Tensor], Tensor] = lambda moves, dt: moves / dt,
    chord: Callable[[Tensor], Tensor] = lambda x: x[0] - x[-1],
    size: Callable[[Tensor], Tensor] = lambda v: v.square().sum(-1),
    mean: Callable[[Tensor], Tensor] = lambda e: e.mean(-1),
    integral: Callable[[Tensor, Tensor], Tensor] = lambda e, dt: -dt @ e,
    result: Callable[..., Any] = lambda cost, energy, bend: (cost, energy, bend),
) -> Callable[..., Any]:
    """straightness_and_energy with another velocity, chord, squared length, mean or integral.

    `speed` gets the moves (S, B, D) and the steps in time (S, 1, 1), which are negative; `mean`
    runs over the samples, `integral` gets a number for each step and the steps (S,).
    """

    def wrong(x: Tensor, ts: Tensor) -> Any:
        dt, line = ts.diff(), chord(x)
        v = speed(x.diff(dim=0), dt[:, None, None])
        energy, bend = (integral(mean(size(u)), dt) for u in (v, v - line))
        return result(mean(size(line)), energy, bend)

    return wrong


straightness_and_energy = Checker(
    chapter="reflow_ot",
    name="straightness_and_energy",
    title="How straight is a path?",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=with_single(_bent_walks),
    mistakes=(
        Mistake(
            "cost and energy are right. Velocities and the straight line point opposite ways: one "
            "of them goes with growing time, the other with the walk, from t = 1 down.",
            _bending(chord=lambda x: x[-1] - x[0]),
        ),
        Mistake(
            "the steps in time are negative, and so your integrals became. Their lengths are "
            "the weights.",
            _bending(integral=lambda e, dt: dt @ e),
        ),
        Mistake(
            "all steps count the same. On an uneven grid a long step counts for more.",
            _bending(integral=lambda e, dt: e.mean(0)),
        ),
        Mistake(
            "a velocity is a move divided by the length of its own step, not by the mean length.",
            _bending(lambda moves, dt: -moves * len(dt)),
        ),
        Mistake(
            "the grid is taken as even: both velocities and weights use the mean length of a step.",
            _bending(lambda moves, dt: -moves * len(dt), integral=lambda e, dt: e.mean(0)),
        ),
        Mistake(
            "the moves are not divided by the length of their step: these are no velocities.",
            _bending(lambda moves, dt: -moves),
        ),
        Mistake(
            "the steps in time have shape (S,): without further axes they meet the coordinates.",
            _bending(lambda moves, dt: moves / dt.flatten()),
        ),
        Mistake(
            "the steps in time have shape (S,). One further axis is not enough: they meet the "
            "samples.",
            _bending(lambda moves, dt: moves / dt[..., 0]),
        ),
        Mistake(
            "the moves are taken for velocities: divide each by its step in time, sign and all.",
            _bending(lambda moves, dt: moves),
        ),
        Mistake(
            "the squared moves are summed, and time is nowhere. A move is no velocity.",
            _bending(lambda moves, dt: moves, integral=lambda e, dt: e.sum(0)),
        ),
        Mistake(
            "roots are taken of all three. They are squares, and stay so.",
            _bending(result=lambda cost, energy, bend: (cost.sqrt(), energy.sqrt(), bend.sqrt())),
        ),
        Mistake(
            "squared moves are added up, without a word of time: a finer grid gives less energy.",
            _bending(lambda moves, dt: -moves, integral=lambda e, dt: e.sum(0)),
        ),
        Mistake(
            "the squared velocities are summed over the steps. Each counts as long as it lasts.",
            _bending(integral=lambda e, dt: e.sum(0)),
        ),
        Mistake(
            "these are means over coordinates. A squared length is their sum.",
            _bending(size=lambda v: v.square().mean(-1)),
        ),
        Mistake(
            "all is averaged in one go. Coordinates are summed, and a long step counts for more.",
            _bending(size=lambda v: v.square().mean(-1), integral=lambda e, dt: e.mean(0)),
        ),
        Mistake(
            "the lengths are not squared.",
            _bending(size=lambda v: v.norm(dim=-1)),
        ),
        Mistake(
            "everything is summed over the samples. Take their mean.",
            _bending(mean=lambda e: e.sum(-1)),
        ),
        Mistake(
            "cost and energy are exchanged.",
            _bending(result=lambda cost, energy, bend: (energy, cost, bend)),
        ),
        Mistake(
            "energy and straightness are exchanged.",
            _bending(result=lambda cost, energy, bend: (cost, bend, energy)),
        ),
        Mistake(
            "cost and energy are right. The straightness has the wrong sign: it is 0 for a "
            "straight path and positive otherwise.",
            _bending(result=lambda cost, energy, bend: (cost, energy, -bend)),
        ),
        Mistake(
            "cost and energy are right. The straightness is their ratio here; it is a difference.",
            _bending(result=lambda cost, energy, bend: (cost, energy, energy / cost)),
        ),
        Mistake(
            "cost and energy are right. A root is taken of the straightness.",
            _bending(result=lambda cost, energy, bend: (cost, energy, bend.sqrt())),
        ),
        Mistake(
            "cost and energy are right. In the straightness the straight line is missing: it "
            "measures what differs from it.",
            _bending(result=lambda cost, energy, bend: (cost, energy, energy)),
        ),
        Mistake(
            "the cost is that of the whole way along the bends. It compares the two ends only.",
            lambda x, ts: (
                x.diff(dim=0).norm(dim=-1).sum(0).square().mean(),
                *_bending()(x, ts)[1:],
            ),
        ),
        Mistake(
            "the three values are the samples' own. Take the mean over them.",
            _bending(mean=lambda e: e),
        ),
    ),
)

# 9 linear_velocity


def _linear_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for d, time, label in (
        (2, 0.3 + 0.05 * seed, "in the plane"),
        (4, 0.8, "four dimensions, near the noise"),
        (3, 0.5, "in the middle"),
        (3, 0.0, "at the data"),
        (2, 1.0, "at the noise"),
    ):
        c0, c1, t = _covariance(draw, d), _covariance(draw, d), torch.tensor(time).double()
        yield Case(f"t = {time:g}, {label}", (c0, c1, t), _fitted_velocity(c0, c1, t))


def _fitted_velocity(c0: Tensor, c1: Tensor, t: Tensor) -> Tensor:
    """Least squares through pairs whose moments are exactly those of the two distributions."""
    d = len(c0)
    signs = (2 * d) ** 0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).to(c0)
    rest = torch.zeros_like(signs)
    x0 = torch.cat([signs @ torch.linalg.cholesky(c0).mT, rest])
    eps = torch.cat([rest, signs @ torch.linalg.cholesky(c1).mT])
    return torch.linalg.lstsq((1 - t) * x0 + t * eps, eps - x0).solution.mT


def _regressed(
    top: Callable[..., Tensor] = lambda a, b, t: t * b - (1 - t) * a,
    bottom: Callable[..., Tensor] = lambda a, b, t: (1 - t) ** 2 * a + t**2 * b,
    divide: Callable[[Tensor, Tensor], Tensor] = lambda n, s: n @ torch.linalg.inv(s),
) -> Callable[..., Tensor]:
    """linear_velocity with other covariances, functions of (C0, C1, t), or another quotient."""
    return lambda c0, c1, t: divide(top(c0, c1, t), bottom(c0, c1, t))


def _gradient_field(c0: Tensor, c1: Tensor, t: Tensor) -> Tensor:
    """The symmetric M with M S + S M = dS/dt, where S is the covariance of x_t."""
    values, vectors = torch.linalg.eigh((1 - t) ** 2 * c0 + t**2 * c1)
    change = vectors.mT @ (2 * t * c1 - 2 * (1 - t) * c0) @ vectors
    return vectors @ (change / (values[:, None] + values)) @ vectors.mT


linear_velocity = Checker(
    chapter="reflow_ot",
    name="linear_velocity",
    title="Rectified flow between two Gaussians",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=with_single(_linear_cases),
    mistakes=(
        Mistake(
            "this is the transpose: the inverse stands on the wrong side.",
            _regressed(divide=lambda n, s: torch.linalg.inv(s) @ n),
        ),
        Mistake(
            "the sign is wrong: the velocity is noise minus data.",
            _regressed(lambda a, b, t: (1 - t) * a - t * b),
        ),
        Mistake(
            "t and 1 - t are exchanged: t = 0 is data.",
            lambda c0, c1, t: _regressed()(c0, c1, 1 - t),
        ),
        Mistake(
            "time runs from noise to data here, as in much of the literature. In this course "
            "t = 0 is data.",
            lambda c0, c1, t: _regressed()(c1, c0, t),
        ),
        Mistake(
            "in the covariance of velocity and x_t the data enter with a minus.",
            _regressed(lambda a, b, t: t * b + (1 - t) * a),
        ),
        Mistake(
            "in the covariance of velocity and x_t each factor enters once: one of the two is the "
            "velocity, which has none.",
            _regressed(lambda a, b, t: t**2 * b - (1 - t) ** 2 * a),
        ),
        Mistake(
            "a factor enters a covariance squared: that of x_t is not (1 - t) C0 + t C1.",
            _regressed(bottom=lambda a, b, t: (1 - t) * a + t * b),
        ),
        Mistake(
            "this is the best guess of the noise alone. Take away that of the data.",
            _regressed(lambda a, b, t: t * b),
        ),
        Mistake(
            "this is minus the best guess of the data. Add that of the noise.",
            _regressed(lambda a, b, t: -(1 - t) * a),
        ),
        Mistake(
            "this is the best guess of the data alone. What is the velocity made of?",
            _regressed(lambda a, b, t: (1 - t) * a),
        ),
        Mistake(
            "this is the best symmetric matrix, that of a gradient field. The mean velocity need "
            "not be symmetric.",
            _gradient_field,
        ),
        Mistake(
            "the product was made symmetric by force. The mean velocity need not be symmetric.",
            _regressed(divide=lambda n, s: (n @ torch.linalg.inv(s) + torch.linalg.inv(s) @ n) / 2),
        ),
        Mistake(
            "this is the covariance of velocity and x_t. It must be divided by that of x_t.",
            _regressed(divide=lambda n, s: n),
        ),
        Mistake(
            "the entries are divided one by one. A matrix is divided by multiplying with its "
            "inverse.",
            _regressed(divide=lambda n, s: n / s),
        ),
        Mistake(
            "a power of -1 inverts each entry. The inverse of a matrix is `torch.linalg.inv`.",
            _regressed(divide=lambda n, s: n @ s**-1),
        ),
        Mistake(
            "in the covariance of velocity and x_t the factors of x_t, 1 - t and t, are missing.",
            _regressed(lambda a, b, t: b - a),
        ),
        Mistake(
            "multiplied by the covariance of x_t, not by its inverse.",
            _regressed(divide=lambda n, s: n @ s),
        ),
        Mistake(
            "the covariance of x_t needs no root here.",
            _regressed(divide=lambda n, s: n @ _root(s, -0.5)),
        ),
        Mistake(
            "this is right for standard normal noise. C1 is given.",
            lambda c0, c1, t: _regressed()(c0, torch.eye(len(c0)).to(c0), t),
        ),
        Mistake(
            "the correlations are left out: only the variances count here.",
            lambda c0, c1, t: _regressed()(c0.diagonal().diag(), c1.diagonal().diag(), t),
        ),
        Mistake(
            "the covariance of x_t is taken as that of the velocity, C0 + C1.",
            _regressed(bottom=lambda a, b, t: a + b),
        ),
    ),
)

# 10 reflow_experiment

OUTCOMES = ("optimal", "above", "unchanged")
Experiment = tuple[str, dict[str, Tensor]]


def _reflow_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    eye = torch.eye(3).double()
    turn = torch.linalg.qr(draw(3, 3)).Q
    for c0, c1, bond, rounds, label in (
        (torch.tensor([[1, 0.9], [0.9, 2]]).double(), torch.tensor([4, 0.25]).double().diag(),
         0.0, 4, "independent, in the plane"),
        (turn @ draw(3).exp().diag() @ turn.mT, eye, 0.0, 2, "independent, from standard noise"),
        (_covariance(draw, 3), _covariance(draw, 3), 0.4, 3,
         "data and noise correlated at first"),
    ):  # fmt: skip
        c0, c1 = c0.double(), c1.double()
        roots = torch.linalg.cholesky(c0), torch.linalg.cholesky(c1)
        spin = torch.linalg.qr(draw(len(c0), len(c0))).Q
        cross, rectify = bond * roots[0] @ spin @ roots[1].mT, _rectifier(c0, c1)
        costs = [_coupling_cost(c0, c1, cross)]
        best = c0.trace() + c1.trace() - 2 * torch.linalg.svdvals(roots[0].mT @ roots[1]).sum()
        now = cross
        for _ in range(rounds):
            flow = rectify(now)
            # Noise with the moments of N(0, C1), walked through the flow and compared.
            moves = (flow - torch.eye(len(c0)).to(c0)) @ roots[1]
            costs.append(moves.square().sum())
            now = flow @ roots[1] @ roots[1].mT
        answer = (frozenset(OUTCOMES), {"reflow": torch.stack(costs), "optimal": best})
        yield Case(label, (c0, c1, cross, rectify, rounds), answer, tolerance=1e-6)


def _coupling_cost(c0: Tensor, c1: Tensor, cross: Tensor) -> Tensor:
    return c0.trace() + c1.trace() - 2 * cross.trace()


def _rectifier(c0: Tensor, c1: Tensor, steps: int = 40) -> Callable[[Tensor], Tensor]:
    """The flow that a coupling gives, as a matrix from noise to data: RK4 on dF/dt = M(t) F."""

    def rectify(cross: Tensor) -> Tensor:
        t = torch.linspace(1, 0, 2 * steps + 1, dtype=torch.float64)[:, None, None]
        both = cross + cross.mT
        spread = (1 - t) ** 2 * c0 + t**2 * c1 + t * (1 - t) * both
        slope = (t * c1 - (1 - t) * c0 + (1 - t) * cross.mT - t * cross) @ torch.linalg.inv(spread)
        flow, h = torch.eye(len(c0)).to(c0), -1 / steps
        for first, middle, last in zip(slope[:-1:2], slope[1::2], slope[2::2], strict=True):
            k1 = first @ flow
            k2 = middle @ (flow + h / 2 * k1)
            k3 = middle @ (flow + h / 2 * k2)
            k4 = last @ (flow + h * k3)
            flow = flow + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return flow

    return rectify


def _best_cost(c0: Tensor, c1: Tensor) -> Tensor:
    return _coupling_cost(c0, c1, _root(_root(c0) @ c1 @ _root(c0)))


def _rounds(
    follow: Callable[..., Tensor] = lambda flow, c0, c1: flow @ c1,
    cost: Callable[..., Tensor] = _coupling_cost,
    best: Callable[..., Tensor] = _best_cost,
    begin: Callable[[Tensor], Tensor] = lambda cross: cross,
    feed: Callable[[Tensor], Tensor] = lambda cross: cross,
    result: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda costs, best: (costs, best),
    early: bool = True,
    again: bool = False,
) -> Callable[..., Experiment]:
    """reflow_experiment with another coupling after a round, another cost or optimum.

    `feed` says which coupling is rectified next, given the present one. `early` notes the costs
    from before the first round on; `again` applies the flow to the coupling itself.
    """

    def wrong(c0: Tensor, c1: Tensor, cross: Tensor, rectify: Any, rounds: int) -> Experiment:
        now = begin(cross)
        costs = [cost(c0, c1, now)] if early else []
        for _ in range(rounds + (not early)):
            flow = rectify(feed(now))
            now = flow @ now if again else follow(flow, c0, c1)
            costs.append(cost(c0, c1, now))
        values = result(torch.stack(costs), best(c0, c1))
        return OUTCOMES[0], dict(zip(("reflow", "optimal"), values, strict=True))

    return wrong


def _reflow_remark(value: Experiment) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    costs, best = measured["reflow"], measured["optimal"].item()
    verb = foretold(prediction, "above")
    return (
        f"independent lines cost {costs[0]:.4g}, one round makes it {costs[1]:.4g}, and after "
        f"{len(costs) - 1} rounds it is {costs[-1]:.4g}. The optimum is {best:.4g}: reflow stops "
        f"above it ({verb})."
    )


reflow_experiment = Checker(
    chapter="reflow_ot",
    name="reflow_experiment",
    title="Does reflow find the optimal map?",
    kind="experiment",
    difficulty=3,
    minutes=25,
    cases=_reflow_cases,
    mistakes=(
        Mistake(
            "in the cost the product counts twice, as in any binomial square.",
            _rounds(cost=lambda a, b, k: a.trace() + b.trace() - k.trace()),
        ),
        Mistake(
            "in the cost the product has the wrong sign: what goes together is near.",
            _rounds(cost=lambda a, b, k: a.trace() + b.trace() + 2 * k.trace()),
        ),
        Mistake(
            "after a round the covariance of data and noise is not the matrix of the flow itself: "
            "the noise has a covariance of its own.",
            _rounds(lambda flow, a, b: flow),
        ),
        Mistake(
            "after a round you multiply by the covariance of the data. The flow is applied to the "
            "noise.",
            _rounds(lambda flow, a, b: flow @ a),
        ),
        Mistake(
            "this is the covariance of noise and data after a round. The one of data and noise is "
            "its transpose.",
            _rounds(lambda flow, a, b: b @ flow.mT),
        ),
        Mistake(
            "the factors stand in the wrong order after a round: the flow comes from the left.",
            _rounds(lambda flow, a, b: b @ flow),
        ),
        Mistake(
            "after a round the flow is transposed. It carries noise to data as it stands.",
            _rounds(lambda flow, a, b: flow.mT @ b),
        ),
        Mistake(
            "after a round you take the covariance of the data alone. The coupling is that of data "
            "and noise.",
            _rounds(lambda flow, a, b: flow @ b @ flow.mT),
        ),
        Mistake(
            "this starts from independent data and noise. The coupling to start from is given.",
            _rounds(begin=torch.zeros_like),
        ),
        Mistake(
            "in each round data and noise are coupled independently again. That is rectified flow "
            "from scratch; reflow goes on with the pairs that the flow has made.",
            _rounds(feed=torch.zeros_like),
        ),
        Mistake(
            "the costs of reflow are right. The optimum that you compare with is what reflow "
            "reaches, so the experiment can say nothing else.",
            _rounds(result=lambda costs, best: (costs, costs[-1])),
        ),
        Mistake(
            "the costs of reflow are right. The optimum holds for covariances that commute only.",
            _rounds(best=lambda a, b: _coupling_cost(a, b, _root(a) @ _root(b))),
        ),
        Mistake(
            "the costs of reflow are right. The optimum is the distance W2; the costs are squares.",
            _rounds(result=lambda costs, best: (costs, best.sqrt())),
        ),
        Mistake(
            "roots are taken of all costs. They are squared distances, and stay so.",
            _rounds(result=lambda costs, best: (costs.sqrt(), best.sqrt())),
        ),
        Mistake(
            "the costs of reflow are right. In the optimum the root in the middle is missing.",
            _rounds(best=lambda a, b: _coupling_cost(a, b, _root(a) @ b @ _root(a))),
        ),
        Mistake(
            "the costs of reflow are right. In the optimum the root is taken of a trace. It is the "
            "trace of a root.",
            _rounds(
                best=lambda a, b: (
                    a.trace() + b.trace() - 2 * (_root(a) @ b @ _root(a)).trace().sqrt()
                )
            ),
        ),
        Mistake(
            "the costs of reflow are right. In the optimum `eigvalsh` gets the product of the two "
            "covariances, which is not symmetric; it reads one half of it only.",
            _rounds(
                best=lambda a, b: (
                    a.trace() + b.trace() - 2 * torch.linalg.eigvalsh(a @ b).sqrt().sum()
                )
            ),
        ),
        Mistake(
            "the costs of reflow are right. The optimum counts the product once; it counts twice.",
            _rounds(best=lambda a, b: (_best_cost(a, b) + a.trace() + b.trace()) / 2),
        ),
        Mistake(
            "the costs of reflow are right. The optimum is that of the variances alone, without "
            "the correlations.",
            _rounds(
                best=lambda a, b: (a.diagonal().sqrt() - b.diagonal().sqrt()).square().sum(),
            ),
        ),
        Mistake(
            "these are means over the coordinates. The cost is the squared distance, their sum.",
            _rounds(
                cost=lambda a, b, k: _coupling_cost(a, b, k) / len(a),
                best=lambda a, b: _best_cost(a, b) / len(a),
            ),
        ),
        Mistake(
            "each cost is noted after its round, so the one before the first round is missing and "
            "there is one too many at the end.",
            _rounds(early=False),
        ),
        Mistake(
            "after a round the flow meets the coupling that it was learned from. It is applied to "
            "fresh noise: what is its covariance?",
            _rounds(again=True),
        ),
        Mistake(
            "the cost before the first round is missing.",
            _rounds(result=lambda costs, best: (costs[1:], best)),
        ),
    ),
    remark=_reflow_remark,
)

# 11 one_step_loss


def _one_step_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in SHAPES[:2]:
        x0, eps = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype) + 0.1
        for name, velocity in (("its input", _soft), ("the time", _timed)):
            student = eps - velocity(eps, torch.ones_like(eps.flatten(1)[:, 0]))
            right = (student - x0).square().sum() / x0.numel()
            yield Case(f"{label}; a network that uses {name}", (velocity, x0, eps), right)


def _soft(x: Tensor, t: Tensor) -> Tensor:
    _check_times(x, t)
    return torch.tanh(weight(0.7, x) * x) + 0.1


def _timed(x: Tensor, t: Tensor) -> Tensor:
    _check_times(x, t)
    return weight(0.5, x) * x + (1 + per_sample(t, x)) ** 2


def _one_step(
    target: Callable[[Tensor, Tensor], Tensor] = lambda x0, eps: eps - x0,
    place: Callable[[Tensor, Tensor], Tensor] = lambda x0, eps: eps,
    time: float = 1.0,
    total: Callable[[Tensor], Tensor] = lambda e: e.square().mean(),
) -> Callable[..., Tensor]:
    """one_step_loss with another target, x and time to ask at, or another mean of the errors."""

    def wrong(velocity: Any, x0: Tensor, eps: Tensor) -> Tensor:
        t = torch.full_like(x0.flatten(1)[:, 0], time)
        return total(velocity(place(x0, eps), t) - target(x0, eps))

    return wrong


one_step_loss = Checker(
    chapter="reflow_ot",
    name="one_step_loss",
    title="Distil a flow into one step",
    kind="implementation",
    difficulty=1,
    minutes=8,
    cases=_one_step_cases,
    mistakes=(
        Mistake(
            "the velocity is asked at t = 0. The step starts at the noise, t = 1.",
            _one_step(time=0.0),
        ),
        Mistake(
            "a sign is wrong: the velocity points from data to noise, so the step goes against it.",
            _one_step(lambda x0, eps: x0 - eps),
        ),
        Mistake(
            "the output of the network is compared with the data. It is a velocity: take the step "
            "first.",
            _one_step(lambda x0, eps: x0),
        ),
        Mistake(
            "the output of the network is compared with the noise. It is a velocity: take the step "
            "first.",
            _one_step(lambda x0, eps: eps),
        ),
        Mistake(
            "the network is asked at the data. A sampler has noise only, and starts there.",
            _one_step(place=lambda x0, eps: x0),
        ),
        Mistake(
            "the network is asked at the data, at t = 0. A sampler starts at the noise, at t = 1.",
            _one_step(place=lambda x0, eps: x0, time=0.0),
        ),
        Mistake(
            "this is the loss of reflow halfway between the two. One step is taken at t = 1 only.",
            _one_step(place=lambda x0, eps: (x0 + eps) / 2, time=0.5),
        ),
        Mistake(
            "the network is asked halfway between data and noise, but told t = 1.",
            _one_step(place=lambda x0, eps: (x0 + eps) / 2),
        ),
        Mistake(
            "the time is halved. The step goes all the way, from t = 1.",
            _one_step(time=0.5),
        ),
        Mistake(
            "row i of the noise belongs to row i of the data. Yours are paired otherwise.",
            lambda velocity, x0, eps: _one_step()(velocity, x0, eps.flip(0)),
        ),
        Mistake(
            "all pairs of data and noise are compared. Row i belongs to row i alone.",
            lambda velocity, x0, eps: (
                (x0[:, None] - (eps - velocity(eps, torch.ones_like(eps.flatten(1)[:, 0])))[None])
                .square()
                .mean()
            ),
        ),
        Mistake(
            "the coordinates are summed. Take the mean over batch and coordinates.",
            _one_step(total=lambda e: e.square().sum() / len(e)),
        ),
        Mistake(
            "this is a sum. Take the mean over batch and coordinates.",
            _one_step(total=lambda e: e.square().sum()),
        ),
        Mistake(
            "the errors are not squared.",
            _one_step(total=lambda e: e.abs().mean()),
        ),
        Mistake(
            "the mean is taken before the square, so that errors of opposite sign cancel.",
            _one_step(total=lambda e: e.mean().square()),
        ),
        Mistake(
            "a root is taken at the end: the loss is the mean of the squares itself.",
            _one_step(total=lambda e: e.square().mean().sqrt()),
        ),
        Mistake(
            "this is one loss for each sample. Take the mean over the batch too.",
            _one_step(total=lambda e: e.square().flatten(1).mean(1)),
        ),
        Mistake(
            "the loss is right, but it has no gradient. The student must learn from it: leave out "
            "whatever switches gradients off.",
            torch.no_grad()(_one_step()),
        ),
    ),
)

CHECKERS = (
    wasserstein_line,
    pair_optimally,
    entropic_objective,
    sinkhorn_log,
    barycentric_map,
    gaussian_map,
    make_pairs,
    straightness_and_energy,
    linear_velocity,
    reflow_experiment,
    one_step_loss,
)
