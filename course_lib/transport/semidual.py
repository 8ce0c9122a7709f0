"""The solver inside :func:`sinkhorn`: scale, and where scaling is slow, take Newton's step.

Entropic transport maximises a concave function of one potential, the semi-dual. Sinkhorn's
iteration climbs it by rescaling; near the top it gains the factor eta a step, and eta comes close
to 1 when epsilon is small. Newton's step solves a linear system instead (Brauer et al., 2017), here
by conjugate gradients, each of which costs as much as one iteration of Sinkhorn (Kemertas et al.,
2025) and of which about ``1 / sqrt(1 - eta)`` are needed, not ``1 / (1 - eta)``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.transport.costs import Cost, Kernel

__all__ = ["Curvature", "Potentials", "conjugate_gradients", "maximise"]

RATIO = 4.0  # from one epsilon to the next, see `_schedule`
START = 50.0  # span of the costs at the first epsilon, in units of it
ROUGH = 1e-2  # marginal error at which the next epsilon begins
NEWTON_BELOW = 0.1  # marginal error below which Newton's step is worth its price
SCALINGS = 5  # Sinkhorn's iterations at least, at each epsilon
LONGEST = 3.0  # longest change of a potential by Newton's step, in units of epsilon


@dataclass
class Potentials:
    """What the solver found; float64.

    Attributes:
        f: shape (B, n).
        g: shape (B, m).
        iterations: products with the kernel and its transpose, all epsilons together.
        error: L1 error of the marginals, shape (B,).
    """

    f: Tensor
    g: Tensor
    iterations: int
    error: Tensor


def maximise(
    a: Tensor, b: Tensor, cost: Cost, epsilon: float, max_iters: int, tol: float
) -> Potentials:
    """Potentials f, g at which ``a_i b_j exp((f_i + g_j - C_ij) / epsilon)`` has marginals a, b."""
    f, g, spent = torch.zeros_like(a), torch.zeros_like(b), 0
    for e in _schedule(cost.span(), epsilon):
        climb = _Climb(a, b, cost.kernel(f, g, e), max_iters - spent)
        climb.to(tol if e == epsilon else max(tol, ROUGH))
        f, g = f + e * climb.u.log(), g + e * climb.v.log()
        spent += climb.spent
    return Potentials(f, g, spent, climb.error)


def _schedule(span: float, epsilon: float) -> Iterator[float]:
    """Falling epsilons, each a quarter of the one before (Schmitzer, 2019).

    They save iterations, and they keep every kernel in range without a logarithm. At the first,
    no exponent is below -START. At each next one, every row of the old kernel has a weighted mean
    of 1, so some exponent is not negative, and stays so when epsilon falls; the largest grows
    fourfold, from log(1 / b_j) at most.
    """
    stages = 0
    while epsilon * RATIO**stages * START < span:
        stages += 1
    for stage in range(stages, -1, -1):
        yield epsilon * RATIO**stage


class _Climb:
    """The scalings u, v of one kernel; the rows of ``diag(a u) K diag(b v)`` always sum to a."""

    def __init__(self, a: Tensor, b: Tensor, kernel: Kernel, budget: int) -> None:
        self.a, self.b, self.kernel, self.budget, self.spent = a, b, kernel, budget, 0
        self.scale(torch.ones_like(b))

    def scale(self, v: Tensor) -> None:
        """Set v, and the u that makes the rows right: one iteration of Sinkhorn but for v."""
        self.v, self.u = v, 1 / self.kernel.rows(self.b * v)
        self.ratio = v * self.kernel.columns(self.a * self.u)  # 1 where a column is right
        self.error = (self.b * (self.ratio - 1).abs()).sum(-1)
        self.spent += 1

    def to(self, goal: float) -> None:
        """Climb until the marginal error is at most ``goal``, or the budget is spent."""
        for step in range(self.budget):
            if bool((self.error <= goal).all()) or self.spent >= self.budget:
                return
            if step < SCALINGS or bool((self.error > NEWTON_BELOW).any()):
                self.scale(self.v / self.ratio)
            else:
                self.newton(goal)

    def newton(self, goal: float) -> None:
        """One step, solved as exactly as it is worth; where it does not help, one scaling."""
        error, v, ratio = self.error, self.v, self.ratio
        hessian = Curvature(self.a, self.u, self.b * v, self.b * ratio, self.kernel)
        enough = torch.maximum(error * error.clamp(max=0.1), torch.tensor(goal / 4))
        step, used = conjugate_gradients(
            hessian, self.b * (1 - ratio), enough, self.budget - self.spent
        )
        self.spent += used
        size = (LONGEST / step.abs().amax(-1, keepdim=True)).clamp(max=1)
        for _ in range(5):
            self.scale(v * torch.exp(size * step))
            worse = ~(self.error <= error) & (error > goal)  # not a number counts as worse
            if not bool(worse.any()):
                return
            size = torch.where(worse[:, None], size / 4, size)
        self.scale(torch.where(worse[:, None], v / ratio, self.v))


class Curvature:
    """``S = diag(c) - P^T diag(1/a) P``, minus the second derivative of the semi-dual, times d.

    Args:
        a: sums of the rows of the plan P = diag(a u) K diag(bv), shape (B, n).
        u: shape (B, n).
        bv: shape (B, m).
        columns: c, the sums of the columns of P, shape (B, m).
        kernel: K.
    """

    def __init__(self, a: Tensor, u: Tensor, bv: Tensor, columns: Tensor, kernel: Kernel) -> None:
        self.u, self.au, self.bv, self.c, self.kernel = u, a * u, bv, columns, kernel

    def __call__(self, d: Tensor) -> Tensor:
        """S d, shape (B, m)."""
        means = self.u * self.kernel.rows(self.bv * d)  # (P d) / a, also where a is 0
        return self.c * d - self.bv * self.kernel.columns(self.au * means)


def conjugate_gradients(
    hessian: Curvature, target: Tensor, enough: Tensor, max_iters: int
) -> tuple[Tensor, int]:
    """Solve S x = target, preconditioned by the diagonal c.

    Args:
        hessian: S, positive semi-definite; its null space, the constants, is orthogonal to target.
        target: shape (B, m).
        enough: L1 norm of the residual at which to stop, shape (B,).
        max_iters: most products with S.

    Returns:
        x of shape (B, m), and the number of products.
    """
    apply: Callable[[Tensor], Tensor] = hessian
    diagonal, tiny = hessian.c.clamp(min=1e-300), 1e-300  # columns without mass stay at 0
    x, residual = torch.zeros_like(target), target
    z = residual / diagonal
    direction, product = z, (residual * z).sum(-1, keepdim=True)
    for k in range(max_iters):
        if bool((residual.abs().sum(-1) <= enough).all()):
            return x, k
        image = apply(direction)
        length = product / (direction * image).sum(-1, keepdim=True).clamp(min=tiny)
        x, residual = x + length * direction, residual - length * image
        z = residual / diagonal
        new = (residual * z).sum(-1, keepdim=True)
        direction, product = z + new / product.clamp(min=tiny) * direction, new
    return x, max_iters
