"""A classifier that also reads noisy digits: what classifier guidance differentiates."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nets.embeddings import check_inputs, sinusoidal
from course_lib.paths import Path

__all__ = ["NoisyDigitClassifier", "noisy_cross_entropy"]

FEATURES = 64


class NoisyDigitClassifier(nn.Module):
    """p(c | x_t) at every time: four convolutions that are told the time, one hidden layer.

    It belongs to the path that it was trained on. The shipped ones are for guidance; samples are
    judged by a `DigitClassifier` that had no part in making them.

    Args:
        image_size: Side of the images in pixels, a multiple of 4.
        path: The path on which x_t lies.
        width: Channels of the first convolution; the others have twice as many.

    Raises:
        ValueError: If `image_size` is no multiple of 4.

    References:
        Dhariwal & Nichol 2021, "Diffusion Models Beat GANs", section 4.
    """

    def __init__(self, image_size: int, path: Path, width: int = 24) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        self.image_size, self.path = image_size, path
        channels = [1, width, 2 * width, 2 * width, 2 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=1 + (layer % 2 == 0), padding=1)  # 2, 1, 2, 1
            for layer, (c_in, c_out) in enumerate(pairwise(channels))
        )
        self.times = nn.ModuleList(nn.Linear(FEATURES, c) for c in channels[1:])
        self.hidden = nn.Linear(2 * width * (image_size // 4) ** 2, 4 * width)
        self.logits = nn.Linear(4 * width, 10)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """Logits of the ten classes.

        Args:
            xt: Noisy images, shape (B, 1, image_size, image_size).
            t: Times in [0, 1], shape (B,).

        Returns:
            Shape (B, 10).

        Raises:
            ValueError: If a shape does not fit.
        """
        check_inputs(xt, t, 1, self.image_size, self.image_size)
        h, features = xt, sinusoidal(t, FEATURES).to(xt.dtype)
        for convolution, time in zip(self.convolutions, self.times, strict=True):
            h = F.silu(convolution(h) + time(features)[:, :, None, None])
        return self.logits(F.silu(self.hidden(h.flatten(1))))

    def log_prob(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """log p(c | x_t) of the labels `cond` (B,) int64, in nats; shape (B,)."""
        return -F.cross_entropy(self(xt, t), cond, reduction="none")


def noisy_cross_entropy(
    model: NoisyDigitClassifier,
    x0: Tensor,
    cond: Any,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The classifier's loss at random times, as an objective for `fit`.

    Args:
        model: Maps noisy images and times to logits.
        x0: Images, shape (B, 1, H, W).
        cond: Labels, int64 of shape (B,).
        generator: Source of times and noise.

    Returns:
        Mean negative log-likelihood of the labels in nats, a scalar.
    """
    t = torch.rand(len(x0), generator=generator, device=x0.device, dtype=x0.dtype)
    eps = torch.empty_like(x0).normal_(generator=generator)
    return -model.log_prob(model.path.sample(x0, t, eps), t, cond).mean()
