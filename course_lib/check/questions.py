"""What the questions of all chapters share: shapes and dtypes, reproducible draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case

__all__ = ["IMAGES", "SHAPES", "foretold", "normal", "per_sample", "weight", "with_single"]

IMAGES = (2, 1, 4, 4)
"""A batch of small images, beside the vectors of most questions."""

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


def foretold(prediction: str, right: str) -> str:
    """Say whether a prediction came true; a wrong one is no failure."""
    return "as you predicted" if prediction == right else f"you predicted {prediction!r}"


def with_single(cases: Callable[[int], Iterable[Case]]) -> Callable[[int], Iterator[Case]]:
    """Ask the first question of every seed in single precision too."""

    def both(seed: int) -> Iterator[Case]:
        asked = list(cases(seed))
        yield from asked
        case, loose = asked[0], asked[0].tolerance
        yield replace(
            case,
            label=f"{case.label}, single precision",
            args=_single(case.args),
            answer=_single(case.answer),
            tolerance=None if loose is None else max(loose, 1e-4),
        )

    return both


def _single(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_single(v) for v in value)
    double = isinstance(value, Tensor) and value.dtype == torch.float64
    return value.float() if double else value
