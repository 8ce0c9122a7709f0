"""CLIP: images and texts in one space, where what belongs together points the same way.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize, pad, silu

from course_lib.nets.text_encoder import TextEncoder

__all__ = ["CLIP", "ContrastiveLoss", "info_nce"]


class CLIP(nn.Module):
    """An image encoder, a text encoder, and a learned temperature.

    Args:
        text_encoder: What reads the texts.
        image_size: Side of the images in pixels, a multiple of 8.
        width: Channels of the first convolution.
        dim: Dimensions of the common space.
        temperature: The one to begin with; it is learned.

    Raises:
        ValueError: If `image_size` is no multiple of 8.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        image_size: int = 32,
        width: int = 16,
        dim: int = 64,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8, got {image_size}")
        self.image_size = image_size
        channels = [1, width, 2 * width, 4 * width, 4 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=2 - (level == 3), padding=1)
            for level, (c_in, c_out) in enumerate(pairwise(channels))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, c) for c in channels[1:])
        self.image_out = nn.Linear(4 * width * (image_size // 8) ** 2, dim)
        self.text_encoder = text_encoder
        self.text_out = nn.Linear(text_encoder.norm.normalized_shape[0], dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """tau, a scalar; at least 0.01, as in the paper."""
        return torch.exp(-self.log_scale.clamp(max=math.log(100)))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors of images, (B, 1, image_size, image_size) in [-1, 1] -> (B, dim).

        Raises:
            ValueError: If the images have another shape.
        """
        side = self.image_size
        if images.shape[1:] != (1, side, side):
            raise ValueError(f"images must be (B, 1, {side}, {side}), got {tuple(images.shape)}")
        h = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = silu(norm(convolution(h)))
        return normalize(self.image_out(h.flatten(1)), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Unit vectors of texts, numbers of words (B, N) -> (B, dim)."""
        return normalize(self.text_out(self.text_encoder.pooled(ids)), dim=-1)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Cosines of every image with every text, over the temperature: (B, M)."""
        return self.embed_images(images) @ self.embed_texts(ids).mT / self.temperature


def info_nce(
    images: Tensor,
    texts: Tensor,
    temperature: float | Tensor = 0.07,
    positives: Tensor | None = None,
) -> Tensor:
    """Which text belongs to the image, and which image to the text? Both as classification.

    The mean of two cross-entropies over the rows and the columns of cosine / temperature (Radford
    et al. 2021, figure 3; InfoNCE of van den Oord et al. 2018, equation 4). Where other
    pairs belong together too, `positives` says so, and the target is then shared among them (Khosla
    et al. 2020, "Supervised Contrastive Learning").

    Args:
        images: Embeddings, shape (B, D); they are normalised here.
        texts: Embeddings of their texts, shape (B, D).
        temperature: tau, above 0.
        positives: Which texts belong to which images, bool of shape (B, B), the diagonal included;
            the diagonal alone by default.

    Returns:
        The loss in nats, a scalar. log B is that of guessing.

    Raises:
        ValueError: If shapes do not fit.
    """
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"images and texts must have the same shape (B, D), got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}"
        )
    logits = normalize(images, dim=-1) @ normalize(texts, dim=-1).mT / temperature
    if positives is None:
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.mT, own)) / 2
    if positives.shape != logits.shape:
        raise ValueError(
            f"positives must have shape {tuple(logits.shape)}, got {tuple(positives.shape)}"
        )
    target = positives.to(logits)
    return (_soft(logits, target) + _soft(logits.mT, target.mT)) / 2


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy to each row's targets, which share its weight."""
    shares = target / target.sum(1, keepdim=True)
    return -(shares * log_softmax(logits, dim=1)).sum(1).mean()


class ContrastiveLoss:
    """InfoNCE of a batch, as an objective for `fit`; each image with one of its captions.

    Images are moved by up to `shift` pixels: no caption says where a digit stands.

    Args:
        shift: Pixels.
    """

    def __init__(self, shift: int = 2) -> None:
        self.shift = shift

    def __call__(
        self, model: CLIP, x0: Tensor, cond: Any, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss.

        Args:
            model: What is trained.
            x0: Images, shape (B, 1, H, W).
            cond: Labels (B,), which are not used, and numbers of words (B, K, N) of K captions.
            generator: Source of the randomness.

        Returns:
            The loss in nats, a scalar.
        """
        ids = one_caption(cond[1], generator)
        embedded = model.embed_images(self._moved(x0, generator)), model.embed_texts(ids)
        # Equal captions have equal logits, so to share the target among them would change nothing.
        return info_nce(*embedded, model.temperature)

    def _moved(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each image moved by its own whole number of pixels."""
        s, (height, width) = self.shift, x.shape[2:]
        rows, columns = (
            torch.randint(2 * s + 1, (len(x), 1), generator=generator, device=x.device)
            + torch.arange(n, device=x.device)
            for n in (height, width)
        )
        framed = pad(x[:, 0], (s, s, s, s), value=-1.0)
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        return framed[batch, rows[:, :, None], columns[:, None]][:, None]


def one_caption(ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One of the K captions of each image, (B, K, N) -> (B, N)."""
    n, choices = ids.shape[:2]
    chosen = torch.randint(choices, (n,), generator=generator, device=ids.device)
    return ids[torch.arange(n, device=ids.device), chosen]
