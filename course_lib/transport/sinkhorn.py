"""Optimal transport with an entropy term, solved to a given error of the marginals.

``min over plans P of  <C, P> + epsilon KL(P | a x b)``. Up to a constant this is
``<C, P> - epsilon H(P)``: the entropy is *subtracted* (Peyre & Cuturi, 2019, section 4.1). The
optimum is ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)``, so two vectors describe it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from course_lib.transport.costs import Cost, CostMatrix, PointCloud, gibbs
from course_lib.transport.semidual import Curvature, conjugate_gradients, maximise

__all__ = ["Plan", "sinkhorn", "sinkhorn_divergence"]


@dataclass(frozen=True)
class Plan:
    """An entropic plan. Where the problem has no batch axis, nor has any of what is below.

    Attributes:
        iterations: products with the kernel and its transpose; one of Sinkhorn's iterations is one.
        error: L1 error of the marginals, shape (B,).
        converged: whether the error is at most ``tol`` in every problem.
    """

    iterations: int
    error: Tensor
    converged: bool
    _weights: tuple[Tensor, Tensor]
    _potentials: tuple[Tensor, Tensor]
    _cost: Cost
    _epsilon: float
    _out: Callable[[Tensor], Tensor]  # to the dtype and the axes of the input

    @property
    def f(self) -> Tensor:
        """Potential of the rows, (B, n)."""
        return self._out(self._potentials[0])

    @property
    def g(self) -> Tensor:
        """Potential of the columns, (B, m), of weighted mean 0."""
        return self._out(self._potentials[1])

    @property
    def matrix(self) -> Tensor:
        """The plan P, (B, n, m)."""
        return self._out(torch.cat(self._by_blocks(lambda p, c, s: p), dim=1))

    @property
    def transport_cost(self) -> Tensor:
        """``<C, P>``, without the entropy term, (B,)."""
        return self._out(sum(self._by_blocks(lambda p, c, s: (p * c).sum((1, 2)))))

    @property
    def entropic_cost(self) -> Tensor:
        """``<C, P> + epsilon KL(P | a x b)``, from the dual, (B,); a lower bound until converged.

        The potentials maximise the dual, so its gradient needs no derivative of theirs.
        """
        (a, b), (f, g) = self._weights, (p.detach() for p in self._potentials)
        mass = sum(self._by_blocks(lambda p, c, s: p.sum((1, 2)), (f, g)))
        return self._out((a * f).sum(-1) + (b * g).sum(-1) - self._epsilon * (mass - 1))

    def barycentric_map(self, y: Tensor) -> Tensor:
        """Where the mass of each row goes on average, ``sum_j P_ij y_j / a_i``.

        Args:
            y: a point for each column, shape (m, d), or (B, m, d).

        Returns:
            Points, (n, d) or (B, n, d); for a row without mass, where it would go.

        Raises:
            ValueError: if there is not one point a column.
        """
        targets = y.to(self._weights[0])
        targets = targets if targets.ndim == 3 else targets[None]
        if targets.ndim != 3 or targets.shape[1] != self._cost.shape[2]:
            raise ValueError(
                f"y must have one point a column, shape ({self._cost.shape[2]}, d); "
                f"got {tuple(y.shape)}"
            )
        rows = torch.ones_like(self._weights[0])
        parts = self._by_blocks(lambda p, c, s: p @ targets / p.sum(2)[..., None], rows=rows)
        return self._out(torch.cat(parts, dim=1))

    @torch.no_grad()
    def sample_targets(self, generator: torch.Generator | None = None) -> Tensor:
        """For each row a column, drawn from ``P_ij / a_i``; int64, (B, n)."""

        def draw(plan: Tensor, cost: Tensor, rows: slice) -> Tensor:
            flat = plan.flatten(0, 1)
            return torch.multinomial(flat, 1, generator=generator).view(plan.shape[:2])

        drawn = self._by_blocks(draw, rows=torch.ones_like(self._weights[0]))
        return self._out(torch.cat(drawn, dim=1)).long()

    def _by_blocks(
        self,
        function: Callable[[Tensor, Tensor, slice], Tensor],
        potentials: Any = None,
        rows: Tensor | None = None,
    ) -> list[Any]:
        """``function(plan, cost, which)`` of each block of rows; ``rows`` replaces their weights.

        With gradients a block is made again on the way back, and not kept.
        """
        (a, b), (f, g) = self._weights, potentials or self._potentials
        a = a if rows is None else rows

        def one(which: slice) -> Tensor:
            cost = self._cost.block(which)
            kernel = gibbs(f[:, which], g, cost, self._epsilon)
            # In place where no gradient needs the kernel: memory costs more time than arithmetic.
            times = kernel.mul if kernel.requires_grad else kernel.mul_
            return function(times(a[:, which, None]).mul_(b[:, None]), cost, which)

        return [checkpoint(one, s, use_reentrant=False) for s in self._cost.blocks()]


def sinkhorn(
    a: Tensor | None,
    b: Tensor | None,
    cost: Tensor | PointCloud,
    epsilon: float,
    *,
    max_iters: int = 10_000,
    tol: float = 1e-6,
) -> Plan:
    """Entropic optimal transport between two histograms (Cuturi, 2013).

    Computed in float64 whatever the input, because at ``epsilon = cost / 1000`` the rounding of
    float32 alone moves the marginals by 1e-4; returned in the dtype of the input. Epsilon falls in
    stages from the span of the costs; each begins with Sinkhorn's iteration and ends with Newton's.

    Differentiable once in weights and costs: the costs of the plan by the envelope theorem, all
    else by the implicit function theorem, so that no iteration is remembered.

    Args:
        a: weights of the rows, shape (n,) or (B, n), at least 0, of sum 1; equal when None.
        b: weights of the columns, shape (m,) or (B, m); equal when None.
        cost: shape (n, m) or (B, n, m), or a :class:`PointCloud`, which needs memory for a block.
        epsilon: strength of the entropy term, in the units of the cost.
        max_iters: most iterations; one is a product with the kernel and one with its transpose.
        tol: L1 error of the marginals at which to stop.

    Returns:
        The plan, its costs, its potentials and how far the iteration came.

    Raises:
        TypeError: if cost is not floating point.
        ValueError: if a shape does not fit, weights are negative or do not sum to 1, a cost is not
            finite, or epsilon, max_iters or tol is not positive.

    Warns:
        UserWarning: if max_iters was not enough, and what to change.
    """
    _check_numbers(epsilon, max_iters, tol)
    problem, single, dtype = _problem(cost)
    batch, n, m = problem.shape
    rows, columns = _weights(a, "a", batch, n, problem), _weights(b, "b", batch, m, problem)
    with torch.no_grad():
        found = maximise(rows, columns, problem, float(epsilon), max_iters, tol)
    converged = bool((found.error <= tol).all())
    if not converged:
        advice = _advice(float(found.error.max()), epsilon, problem, max_iters, tol)
        warnings.warn(advice, stacklevel=2)

    def out(value: Tensor) -> Tensor:
        return (value[0] if single else value).to(dtype)

    weights = (rows, columns)
    potentials = _implicit(weights, (found.f, found.g), problem, float(epsilon))
    return Plan(
        found.iterations, out(found.error), converged, weights, potentials, problem, epsilon, out
    )


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2`` with entropic costs (Feydy et al., 2019, eq. 3).

    The entropic cost of a distribution with itself is above zero; subtracting it makes this zero
    there, and only there. Differentiable once, memory as for a :class:`PointCloud`.

    Args:
        x: points, shape (n, d) or (B, n, d).
        y: points, shape (m, d) or (B, m, d).
        epsilon: strength of the entropy term, in squared units of x.
        a: weights of x; equal when None.
        b: weights of y; equal when None.
        options: max_iters and tol of :func:`sinkhorn`.

    Returns:
        The divergence for squared distances, a scalar or (B,).

    Raises:
        ValueError: as :func:`sinkhorn`.
    """

    def cost(p: Tensor | None, q: Tensor | None, u: Tensor, v: Tensor) -> Tensor:
        return sinkhorn(p, q, PointCloud(u, v), epsilon, **options).entropic_cost

    return cost(a, b, x, y) - (cost(a, a, x, x) + cost(b, b, y, y)) / 2


def _check_numbers(epsilon: float, max_iters: int, tol: float) -> None:
    for name, value in (("epsilon", epsilon), ("tol", tol)):
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number; got {value!r}")
    if max_iters < 1:
        raise ValueError(f"max_iters must be at least 1; got {max_iters}")


def _problem(cost: Tensor | PointCloud) -> tuple[Cost, bool, torch.dtype]:
    """The cost with a batch axis in float64, whether the axis is new, and the dtype that came."""
    if isinstance(cost, PointCloud):
        return cost, cost.single, cost.dtype
    if not cost.is_floating_point():
        raise TypeError(f"cost must be floating point; got {cost.dtype}")
    if cost.ndim not in (2, 3) or 0 in cost.shape:
        raise ValueError(
            f"cost must have shape (n, m) or (B, n, m), none of them 0; got {tuple(cost.shape)}"
        )
    matrix = CostMatrix(cost.double().reshape(-1, *cost.shape[-2:]))
    if not math.isfinite(matrix.span()):
        raise ValueError("cost must be finite; it contains NaN or infinity")
    return matrix, cost.ndim == 2, cost.dtype


def _weights(given: Tensor | None, name: str, batch: int, size: int, cost: Cost) -> Tensor:
    """Weights as (B, size) in float64; refuse what is no distribution."""
    device = cost.block(slice(0, 1)).device
    if given is None:
        return torch.full((batch, size), 1 / size, dtype=torch.float64, device=device)
    if given.shape not in ((size,), (batch, size)):
        raise ValueError(
            f"{name} must have shape ({size},) or ({batch}, {size}), as the cost has; "
            f"got {tuple(given.shape)}"
        )
    weights = given.to(device, torch.float64)
    if not bool((weights >= 0).all()):
        raise ValueError(f"{name} must not be negative or NaN; its smallest is {weights.min():.3g}")
    total = weights.sum(-1, keepdim=True)
    if not bool(((total - 1).abs() < 1e-4).all()):
        worst = total.flatten()[(total - 1).abs().argmax()]
        raise ValueError(f"{name} must sum to 1; got {worst:.6g} (divide by {name}.sum())")
    return (weights / total.detach()).expand(batch, size)  # of float32, the sum is not quite 1


def _advice(error: float, epsilon: float, cost: Cost, max_iters: int, tol: float) -> str:
    return (
        f"sinkhorn stopped after max_iters={max_iters} with a marginal error of {error:.1e}, "
        f"above tol={tol:.1e}. Raise max_iters, or tol, or epsilon: it is {epsilon:.3g}, and the "
        f"costs span {cost.span():.3g}"
    )


# --- gradients of the potentials ------------------------------------------------------------------


def _implicit(
    weights: tuple[Tensor, Tensor], potentials: tuple[Tensor, Tensor], cost: Cost, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The potentials, with gradients in weights and cost, and the mean of g moved to 0.

    They solve ``F(f, g; parameters) = 0``, the marginals' error; so their derivative is that of one
    Newton step, ``-(dF / d(f, g))^-1 dF / d(parameters)``. The step itself is zero.
    """
    (a, b), (f, g) = weights, potentials
    if any(p.requires_grad for p in (a, b, cost.block(slice(0, 1)))):
        plan = Plan(0, f, True, weights, potentials, cost, epsilon, lambda value: value)
        parts = plan._by_blocks(lambda p, c, s: torch.cat([p.sum(2), p.sum(1)], dim=1))
        heights = [part.shape[1] - b.shape[1] for part in parts]
        rows = torch.cat([p[:, :h] for p, h in zip(parts, heights, strict=True)], dim=1) - a
        columns = sum(p[:, h:] for p, h in zip(parts, heights, strict=True)) - b
        solve = _solver(a.detach(), b.detach(), cost.kernel(f, g, epsilon))
        df, dg = _NewtonStep.apply(rows, columns, solve)
        f, g = f - epsilon * df, g - epsilon * dg
    mean = (b * g).sum(-1, keepdim=True)
    return f + mean, g - mean


def _solver(a: Tensor, b: Tensor, kernel: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(r, c) -> (x, y)`` that solve ``a x + P y = r,  P^T x + b y = c``."""
    curvature = Curvature(a, torch.ones_like(a), b, b, kernel)

    def solve(r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        target = c - b * kernel.columns(r)
        target = target - b * target.sum(-1, keepdim=True)  # what a shift of g would add
        enough = 1e-10 * target.abs().sum(-1)
        y, _ = conjugate_gradients(curvature, target, enough, 10 * len(b[0]))
        return torch.where(a > 0, r / a, 0) - kernel.rows(b * y), y

    return solve


class _NewtonStep(torch.autograd.Function):
    """Zero, with the derivative of the solution of a symmetric linear system."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, solve: Any) -> tuple[Tensor, Tensor]:
        ctx.solve = solve
        return torch.zeros_like(rows), torch.zeros_like(columns)

    @staticmethod
    def backward(ctx: Any, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.solve(rows, columns), None
