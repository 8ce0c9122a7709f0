"""A small classifier of digits: its features measure samples, its classes check conditions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DigitClassifier", "cross_entropy", "jittered_cross_entropy"]


class DigitClassifier(nn.Module):
    """Four convolutions, one hidden layer, ten classes.

    The hidden layer is the feature in which the Fréchet distance is measured, as the last pooling
    layer of Inception is in FID (Heusel et al., 2017).

    Args:
        image_size: side of the images in pixels, 8 or more.
        width: channels of the first two convolutions; the others have twice as many.
        features: width of the hidden layer.

    Raises:
        ValueError: the images are smaller than 8x8.
    """

    def __init__(self, image_size: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8; got {image_size}")
        self.image_size = image_size
        side = image_size // 4  # two poolings
        channels = [1, width, width, 2 * width, 2 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise(channels)
        )
        self.hidden = nn.Linear(2 * width * side**2, features)
        self.logits = nn.Linear(features, 10)

    def features(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: shape (B, 1, image_size, image_size), in [-1, 1].

        Returns:
            Shape (B, features), before the nonlinearity, so that Gaussians fit them better.

        Raises:
            ValueError: the images have another shape.
        """
        if images.shape[1:] != (1, self.image_size, self.image_size):
            raise ValueError(
                f"images must have shape (B, 1, {self.image_size}, {self.image_size}); "
                f"got {tuple(images.shape)}"
            )
        h = images
        for index, convolution in enumerate(self.convolutions):
            h = F.relu(convolution(h))
            if index % 2:
                h = F.max_pool2d(h, 2)
        return self.hidden(h.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten classes: (B, 1, image_size, image_size) -> (B, 10)."""
        return self.logits(F.dropout(F.relu(self.features(images)), 0.3, self.training))


def cross_entropy(
    model: nn.Module, x0: Tensor, cond: Any, *, generator: torch.Generator | None = None
) -> Tensor:
    """The classifier's loss, as an objective for `fit`.

    Args:
        model: maps images to logits.
        x0: images, shape (B, 1, H, W).
        cond: labels, int64 of shape (B,).
        generator: not used; here so that it is called as every objective is.

    Returns:
        Mean negative log-likelihood of the labels in nats, a scalar.
    """
    return F.cross_entropy(model(x0), cond)


def jittered_cross_entropy(
    model: nn.Module, x0: Tensor, cond: Any, *, generator: torch.Generator | None = None
) -> Tensor:
    """The classifier's loss on images that are slightly moved, turned, scaled and sheared.

    For small data sets: each image is seen through another random affine map at every step.

    Args:
        model: maps images to logits.
        x0: images, shape (B, 1, H, W).
        cond: labels, int64 of shape (B,).
        generator: source of the randomness.

    Returns:
        Mean negative log-likelihood of the labels in nats, a scalar.
    """
    noise = torch.empty(len(x0), 2, 3, device=x0.device).normal_(generator=generator)
    affine = torch.eye(2, 3, device=x0.device) + 0.1 * noise
    grid = F.affine_grid(affine, list(x0.shape), align_corners=False)
    moved = F.grid_sample(x0, grid, padding_mode="border", align_corners=False)
    return cross_entropy(model, moved, cond)
