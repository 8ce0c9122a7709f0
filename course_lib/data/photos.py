"""Two photographs in colour that need no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["photographs"]


def photographs(height: int = 96) -> Tensor:
    """Load the two photographs that ship inside scikit-learn: a temple in China, and a flower.

    Args:
        height: rows of the images, at most the 427 of the originals; three by two is kept.

    Returns:
        Images (2, 3, height, 1.5 height) float32 in [-1, 1], made smaller without aliasing.

    Raises:
        ValueError: if `height` is not an even number from 2 to 426.

    References:
        "china.jpg" and "flower.jpg", see ``sklearn.datasets.load_sample_images``.
    """
    from sklearn.datasets import load_sample_images

    if not 2 <= height <= 426 or height % 2:
        raise ValueError(f"height must be an even number from 2 to 426; got {height}")
    pixels = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    size = (height, 3 * height // 2)
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(-1, 1)
