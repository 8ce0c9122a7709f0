"""Optimal transport between Gaussians, in closed form: distance, map and entropic plan.

All three are computed in float64. The mean enters only by a shift; the rest is algebra of the
covariances.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EntropicGaussian", "entropic_gaussian", "gaussian_map", "gaussian_wasserstein2"]


def gaussian_wasserstein2(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Wasserstein-2 distance between two Gaussians, in closed form.

    ``W2^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2)``, the last trace being
    the Bures term (Dowson and Landau, 1982).

    Args:
        mean_x: shape (D,).
        cov_x: symmetric positive semi-definite, shape (D, D).
        mean_y: shape (D,).
        cov_y: symmetric positive semi-definite, shape (D, D).

    Returns:
        W2 (not its square), in the units of the means.
    """
    # The trace of the root of A A^T, with A = C_x^1/2 C_y^1/2, is the sum of A's singular values:
    # no root of a rounded, slightly negative eigenvalue is ever taken.
    cov_x, cov_y = cov_x.double(), cov_y.double()
    cross = torch.linalg.svdvals(_symmetric_root(cov_x) @ _symmetric_root(cov_y)).sum()
    spread = torch.trace(cov_x) + torch.trace(cov_y) - 2 * cross
    return float(((mean_x - mean_y).double().square().sum() + spread.clamp(min=0)).sqrt())


def gaussian_map(
    mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor
) -> tuple[Tensor, Tensor]:
    """The optimal map from one Gaussian to another, ``x -> A x + b``.

    ``A = C_x^-1/2 (C_x^1/2 C_y C_x^1/2)^1/2 C_x^-1/2`` is symmetric and positive semi-definite, so
    the map is the gradient of a convex function (Peyre and Cuturi, 2019, Remark 2.31).

    Args:
        mean_x: shape (D,).
        cov_x: symmetric positive definite, shape (D, D).
        mean_y: shape (D,).
        cov_y: symmetric positive semi-definite, shape (D, D).

    Returns:
        A of shape (D, D) and b of shape (D,), in the dtype of ``mean_x``; for rows of samples
        ``x @ A.T + b``.

    Raises:
        ValueError: if shapes do not fit, a covariance is not symmetric positive semi-definite, or
            ``cov_x`` is singular.
    """
    m_x, c_x, m_y, c_y = _moments(mean_x, cov_x, mean_y, cov_y)
    values, vectors = torch.linalg.eigh(c_x)
    if values[0] <= 1e-12 * values[-1]:
        raise ValueError(
            f"cov_x must be positive definite, or there may be no map; its eigenvalues reach from "
            f"{float(values[0]):.3g} to {float(values[-1]):.3g}"
        )
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    a = inverse @ _symmetric_root(root @ c_y @ root) @ inverse
    return a.to(mean_x.dtype), (m_y - a @ m_x).to(mean_x.dtype)


class EntropicGaussian(NamedTuple):
    """The entropic plan between two Gaussians, itself a Gaussian on pairs (x, y)."""

    cross_covariance: Tensor
    """Cov(x, y) under the plan, shape (D, D)."""
    transport_cost: float
    """E|x - y|^2 under the plan, at least W2^2."""
    entropic_cost: float
    """The minimum, ``E|x - y|^2 + epsilon KL(P | a x b)``."""


def entropic_gaussian(
    mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor, epsilon: float
) -> EntropicGaussian:
    """Entropic optimal transport between two Gaussians, ``min E|x - y|^2 + epsilon KL(P | a x b)``.

    Janati, Muzellec, Peyre and Cuturi, 2020, theorem 1, where epsilon is written 2 sigma^2. As
    epsilon falls to 0 the cost becomes W2^2; as it grows the plan becomes independent.

    Args:
        mean_x: shape (D,).
        cov_x: symmetric positive semi-definite, shape (D, D).
        mean_y: shape (D,).
        cov_y: symmetric positive semi-definite, shape (D, D).
        epsilon: strength of the entropy term, in squared units of the means; above 0.

    Returns:
        The plan's covariance of x and y, in the dtype of ``mean_x``, and the two costs.

    Raises:
        ValueError: if shapes do not fit, a covariance is not symmetric positive semi-definite, or
            epsilon is not positive.
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be a positive number; got {epsilon}")
    m_x, c_x, m_y, c_y = _moments(mean_x, cov_x, mean_y, cov_y)
    root = _symmetric_root(c_x)
    values, vectors = torch.linalg.eigh(root @ c_y @ root)
    values = values.clamp(min=0)
    # D_sigma + sigma^2 I of the theorem, in the eigenbasis. Dividing by it, rather than taking the
    # difference D_sigma - sigma^2 I, leaves no cancellation and no inverse of C_x.
    d = (4 * values + epsilon**2 / 4).sqrt() + epsilon / 2
    cross = root @ ((vectors * (2 / d)) @ vectors.T) @ root @ c_y
    shared = 2 * values / d  # the eigenvalues of the cross covariance
    spread = torch.trace(c_x) + torch.trace(c_y) - 2 * shared.sum()
    cost = float((m_x - m_y).square().sum() + spread)
    divergence = 0.5 * float(torch.log1p(2 * shared / epsilon).sum())
    return EntropicGaussian(cross.to(mean_x.dtype), cost, cost + epsilon * divergence)


def _moments(
    mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four in float64; refuse what are no moments."""
    shape = mean_x.shape
    for name, mean, cov in (("x", mean_x, cov_x), ("y", mean_y, cov_y)):
        if mean.ndim != 1 or mean.shape != shape or cov.shape != shape * 2:
            raise ValueError(
                f"means must have shape (D,) and covariances (D, D), of one D; got mean_{name} "
                f"{tuple(mean.shape)} and cov_{name} {tuple(cov.shape)}"
            )
        least = -1e-6 * cov.abs().max()  # rounding of float32
        if not torch.allclose(cov, cov.T) or torch.linalg.eigvalsh(cov)[0] < least:
            raise ValueError(f"cov_{name} must be symmetric and positive semi-definite; it is not")
    return mean_x.double(), cov_x.double(), mean_y.double(), cov_y.double()


def _symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix, through its eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
