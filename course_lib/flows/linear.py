"""Invertible linear maps whose log-determinant is a sum of d numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular
from torch.nn.functional import linear

__all__ = [
    "LINEAR_MAPS",
    "LinearMap",
    "OrthogonalLinear",
    "PLULinear",
    "check_at_least",
    "find_linear",
]


def check_at_least(name: str, value: int, least: int) -> None:
    """Check a size.

    Raises:
        ValueError: if ``value`` is smaller than ``least``.
    """
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


class LinearMap(nn.Module):
    """An invertible matrix W, applied to each row of a batch."""

    def forward(self, z: Tensor) -> Tensor:
        """W z for each row, (B, d) -> (B, d)."""
        raise NotImplementedError

    def inverse(self, x: Tensor) -> Tensor:
        """W^-1 x for each row, (B, d) -> (B, d)."""
        raise NotImplementedError

    def log_abs_det(self) -> Tensor:
        """log abs det W, a scalar, in O(d)."""
        raise NotImplementedError


class PLULinear(LinearMap):
    """W = P L D U: a fixed permutation, a unit lower, a positive diagonal and a unit upper matrix.

    The d^2 numbers stand in one matrix, ``packed``: L below the diagonal, U above it, log D on it.
    No inverse is ever made: W^-1 x takes two triangular solves (Kingma & Dhariwal, 2018, "Glow",
    section 3.2). W starts as a random rotation, but for the signs of its columns.

    Args:
        dim: dimension d.
        scale: by how much W stretches at first.

    Raises:
        ValueError: if ``dim`` is smaller than 1.
    """

    order: Tensor

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(dim, dim)).Q)
        pivots = upper.diagonal()
        # A column whose pivot is negative changes its sign, which a symmetric base does not mind.
        upper = upper * pivots.sign() / pivots.abs()[:, None]
        log_scale = (scale * pivots.abs()).log()
        self.packed = nn.Parameter(lower.tril(-1) + log_scale.diag() + upper.triu(1))
        self.register_buffer("order", permutation.argmax(0))

    def forward(self, z: Tensor) -> Tensor:
        """W z for each row, (B, d) -> (B, d)."""
        u = (z + linear(z, self.packed.triu(1))) * self.packed.diagonal().exp()
        return (u + linear(u, self.packed.tril(-1)))[:, self.order.argsort()]

    def inverse(self, x: Tensor) -> Tensor:
        """W^-1 x for each row, (B, d) -> (B, d)."""
        u = solve_triangular(self.packed, x[:, self.order].T, upper=False, unitriangular=True)
        u = u * (-self.packed.diagonal()).exp()[:, None]
        return solve_triangular(self.packed, u, upper=True, unitriangular=True).T

    def log_abs_det(self) -> Tensor:
        """log abs det W, a scalar, in O(d)."""
        return self.packed.diagonal().sum()


class OrthogonalLinear(LinearMap):
    """W = Q D: an orthogonal matrix and a positive diagonal.

    Q is a product of d Householder reflections, I - V S^-1 V' with S the upper triangle of V'V,
    its diagonal halved (Joffrain et al. 2006, "Accumulating Householder transformations,
    revisited", theorem 3). That takes one triangular solve, and its inverse another.

    Args:
        dim: dimension d.
        scale: by how much W stretches at first.

    Raises:
        ValueError: if ``dim`` is smaller than 1.
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        self.reflectors = nn.Parameter(torch.randn(dim, dim) / dim**0.5)
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(scale)))

    def forward(self, z: Tensor) -> Tensor:
        """W z for each row, (B, d) -> (B, d)."""
        z = z * self.log_scale.exp()
        solved = solve_triangular(self._triangle(), (z @ self.reflectors).T, upper=True)
        return z - linear(solved.T, self.reflectors)

    def inverse(self, x: Tensor) -> Tensor:
        """W^-1 x for each row, (B, d) -> (B, d)."""
        solved = solve_triangular(self._triangle().T, (x @ self.reflectors).T, upper=False)
        return (x - linear(solved.T, self.reflectors)) * (-self.log_scale).exp()

    def log_abs_det(self) -> Tensor:
        """log abs det W, a scalar, in O(d)."""
        return self.log_scale.sum()

    def _triangle(self) -> Tensor:
        """S, of which S + S' = V'V."""
        products = self.reflectors.T @ self.reflectors
        return products.triu(1) + products.diagonal().diag() / 2


LINEAR_MAPS: dict[str, Callable[[int, float], LinearMap]] = {
    "plu": PLULinear,
    "orthogonal": OrthogonalLinear,
}
"""The two by name."""


def find_linear(name: str) -> Callable[[int, float], LinearMap]:
    """Look a linear map up by its name; called with dimension and scale, it makes one.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    if name not in LINEAR_MAPS:
        raise ValueError(f"linear must be one of {', '.join(LINEAR_MAPS)}; got {name!r}")
    return LINEAR_MAPS[name]
