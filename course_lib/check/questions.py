"""What the questions of all chapters share: shapes and dtypes, reproducible draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SHAPES", "normal", "per_sample", "weight"]

SHAPES = (
    ((4, 1, 8, 8), torch.float32, "a batch of images, single precision"),
    ((3, 3), torch.float64, "as many samples as coordinates, double precision"),
    ((5,), torch.float64, "samples that are single numbers"),
)
"""Shape, dtype and label of samples; the second finds factors that meet the wrong axis."""


def normal(seed: int) -> Callable[..., Tensor]:
    """Return a function that draws standard normal numbers: ``draw(2, 3, dtype=torch.float64)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, dtype=torch.float64: torch.randn(shape, generator=generator, dtype=dtype)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Bring factors of shape (B,) to (B, 1, ..., 1), in the dtype of x."""
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


def weight(value: float, x: Tensor) -> Tensor:
    """Return a number that can be learned: what uses it must keep its gradient."""
    return torch.tensor(value).to(x).requires_grad_()
