"""What editing takes: images in [-1, 1] and masks of 0 and 1, refused with a reason otherwise."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_images", "check_mask"]


def check_images(x: Any, name: str) -> None:
    """Refuse images outside [-1, 1]; points and other shapes than (B, C, H, W) have no range.

    Raises:
        TypeError: if ``x`` is no tensor.
        ValueError: if it holds no floating-point numbers, a NaN, or an image beyond the range.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    if not x.is_floating_point() or bool(x.isnan().any()):
        got = "NaN" if x.is_floating_point() else x.dtype
        raise ValueError(f"{name} must hold floating-point numbers; got {got}")
    if x.ndim == 4 and x.numel() and float(x.abs().max()) > 1 + 1e-3:
        raise ValueError(
            f"{name} must be images in [-1, 1]; got values from {x.min().item():.3g} to "
            f"{x.max().item():.3g}: scale them, or clamp what a model drew"
        )


def check_mask(mask: Any, shape: torch.Size | tuple[int, ...], name: str = "mask") -> Tensor:
    """The mask as booleans of that shape; 1 means known.

    Raises:
        TypeError: if ``mask`` is no tensor.
        ValueError: if it holds anything but 0 and 1, or does not broadcast to ``shape``.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor of 0 and 1; got {type(mask).__name__}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        odd = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{name} must be 0 (unknown) or 1 (known) everywhere; got {odd:.4g}")
    try:
        return (mask == 1).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to {tuple(shape)}; got {tuple(mask.shape)}"
        ) from None
