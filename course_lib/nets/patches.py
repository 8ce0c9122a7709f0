"""Images as sequences of square patches, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course_lib.nets.embeddings import sinusoidal

__all__ = ["patchify", "position_embedding", "unpatchify", "with_channels"]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images into square patches, row by row.

    Args:
        x: Images, shape (B, C, H, W).
        patch: Side of a patch in pixels; divides H and W.

    Returns:
        One flat patch a token, shape (B, (H / patch) (W / patch), C patch patch).
    """
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B C h p w q
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Put patches together again: the inverse of `patchify`.

    Args:
        tokens: Flat patches, shape (B, (H / patch) (W / patch), C patch patch).
        patch: Side of a patch in pixels.
        height: Height H of the images.
        width: Width W of the images.

    Returns:
        Images, shape (B, C, H, W).
    """
    x = tokens.unflatten(2, (-1, patch, patch))  # B hw C p q
    x = x.unflatten(1, (height // patch, width // patch))  # B h w C p q
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def position_embedding(side: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column, for a square grid of tokens.

    Args:
        side: Tokens a side. The periods run from 2 tokens to 4 sides.
        dim: Width, divisible by 4: one half tells the row, the other the column.

    Returns:
        Shape (side * side, dim), in the order of `patchify`.
    """
    # Angles pi k (2 side)^-j: each feature varies over the grid. With a transformer's usual longest
    # period of 10,000 tokens most of them would be constant on a grid of a few tokens a side.
    line = sinusoidal(math.pi * torch.arange(side) / 1000, dim // 2, max_period=2 * side)
    rows, columns = line.repeat_interleave(side, 0), line.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def with_channels(x: Tensor, channels: Tensor | None) -> Tensor:
    """Put the same numbers beside the image at every pixel: x (B, C, H, W), channels (B, P).

    Returns:
        Shape (B, C + P, H, W); `x` itself where `channels` is None.
    """
    if channels is None:
        return x
    return torch.cat([x, channels[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
