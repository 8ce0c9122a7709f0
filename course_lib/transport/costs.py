"""Costs of transport and their Gibbs kernels, as a matrix or made on the fly from two point clouds.

A matrix of 20,000 x 20,000 costs fills 3.2 GB before any work is done. The squared distances of
two point clouds need not be stored: a block of rows is made when it is used.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Cost", "CostMatrix", "Kernel", "PointCloud", "gibbs"]

BLOCK = 2**22  # numbers of a block: 32 MB


class Kernel(Protocol):
    """``K_ij = exp((f_i + g_j - C_ij) / epsilon)``, which is all that Sinkhorn's iteration uses."""

    def rows(self, weights: Tensor) -> Tensor:
        """``sum_j K_ij w_j``, (B, m) -> (B, n)."""

    def columns(self, weights: Tensor) -> Tensor:
        """``sum_i K_ij w_i``, (B, n) -> (B, m)."""


class Cost(Protocol):
    """What it costs to move a unit of mass from i to j, for B problems at once."""

    shape: tuple[int, int, int]

    def blocks(self) -> Iterator[slice]:
        """Which rows to look at together."""

    def block(self, rows: slice) -> Tensor:
        """The costs of these rows, (B, rows, m); differentiable."""

    def kernel(self, f: Tensor, g: Tensor, epsilon: float) -> Kernel:
        """The kernel of the potentials f (B, n) and g (B, m)."""

    def span(self) -> float:
        """A bound of the largest difference between two costs."""


class CostMatrix:
    """Costs that are stored.

    Args:
        matrix: shape (B, n, m).
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape = matrix, (matrix.shape[0], matrix.shape[1], matrix.shape[2])
        low, high = torch.aminmax(matrix.detach())
        self._span = float(high - low)

    def blocks(self) -> Iterator[slice]:
        """All rows at once."""
        yield slice(None)

    def block(self, rows: slice) -> Tensor:
        """The costs of these rows."""
        return self.matrix[:, rows]

    def kernel(self, f: Tensor, g: Tensor, epsilon: float) -> Kernel:
        """The kernel, stored too: an iteration is two products with it."""
        return _StoredKernel(gibbs(f, g, self.matrix.detach(), epsilon))

    def span(self) -> float:
        """The largest difference between two costs, of all problems."""
        return self._span


def gibbs(f: Tensor, g: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    """``exp((f_i + g_j - C_ij) / epsilon)``, (B, n, m), in one piece of memory; differentiable."""
    exponent = (f / epsilon)[:, :, None] + (g / epsilon)[:, None, :]
    return exponent.sub_(cost, alpha=1 / epsilon).exp_()


class _StoredKernel:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def rows(self, weights: Tensor) -> Tensor:
        return _product(self.matrix, weights)

    def columns(self, weights: Tensor) -> Tensor:
        return _product(self.matrix.mT, weights)


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    if len(matrices) == 1:  # a plain product is faster than a batch of one
        return torch.mv(matrices[0], vectors[0])[None]
    return torch.bmm(vectors[:, None], matrices.mT)[:, 0]  # and rows are faster than columns


class PointCloud:
    """Squared distances ``|x_i - y_j|^2`` between two sets of points, made when they are used.

    Args:
        x: points, shape (n, d), or (B, n, d) for B problems.
        y: points, shape (m, d), or (B, m, d).

    Raises:
        TypeError: if a set is not floating point.
        ValueError: if shapes do not fit or a coordinate is not finite.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        for name, points in (("x", x), ("y", y)):
            if not points.is_floating_point():
                raise TypeError(f"{name} must be floating point; got {points.dtype}")
            if points.ndim not in (2, 3) or 0 in points.shape:
                raise ValueError(
                    f"{name} must have shape (n, d) or (B, n, d), none of them 0; "
                    f"got {tuple(points.shape)}"
                )
            if not bool(torch.isfinite(points).all()):
                raise ValueError(f"{name} must be finite; it contains NaN or infinity")
        if x.ndim != y.ndim or x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
            raise ValueError(
                "x and y must agree in the number of problems and in dimension; "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        self.single, self.dtype = x.ndim == 2, torch.promote_types(x.dtype, y.dtype)
        x, y = (points.double().reshape(-1, *points.shape[-2:]) for points in (x, y))
        centre = x.detach().mean(1, keepdim=True)  # small numbers cancel less
        self.x, self.y = x - centre, y - centre
        self.shape = (len(x), x.shape[1], y.shape[1])

    def blocks(self) -> Iterator[slice]:
        """As many rows as fill a block."""
        problems, n, m = self.shape
        height = max(1, BLOCK // (problems * m))
        yield from (slice(start, start + height) for start in range(0, n, height))

    def block(self, rows: slice) -> Tensor:
        """The squared distances of these rows."""
        x, y = self.x[:, rows], self.y
        return (_norm(x)[:, :, None] + _norm(y)[:, None, :] - 2 * x @ y.mT).clamp(min=0)

    def kernel(self, f: Tensor, g: Tensor, epsilon: float) -> Kernel:
        """The kernel, made anew for each product."""
        return _CloudKernel(self, f, g, epsilon)

    def span(self) -> float:
        """(the largest norm of x + the largest norm of y)^2."""
        far = sum(_norm(points.detach()).amax(1).sqrt() for points in (self.x, self.y))
        return float(torch.as_tensor(far).square().max())


def _norm(points: Tensor) -> Tensor:
    """``|x|^2`` of each point."""
    return points.square().sum(-1)


class _CloudKernel:
    """The exponent is one matrix product, ``(2x, f - |x|^2, 1)`` times ``(y, 1, g - |y|^2)``."""

    def __init__(self, cloud: PointCloud, f: Tensor, g: Tensor, epsilon: float) -> None:
        x, y = cloud.x.detach(), cloud.y.detach()
        left = [2 * x, (f - _norm(x))[..., None], torch.ones_like(f)[..., None]]
        right = [y, torch.ones_like(g)[..., None], (g - _norm(y))[..., None]]
        self.left, self.right = torch.cat(left, -1) / epsilon, torch.cat(right, -1).mT
        self.slices = list(cloud.blocks())

    def _block(self, rows: slice) -> Tensor:
        return (self.left[:, rows] @ self.right).exp_()

    def rows(self, weights: Tensor) -> Tensor:
        return torch.cat([_product(self._block(s), weights) for s in self.slices], dim=1)

    def columns(self, weights: Tensor) -> Tensor:
        total = torch.zeros_like(self.right[:, 0])
        for s in self.slices:
            total += _product(self._block(s).mT, weights[:, s])
        return total
