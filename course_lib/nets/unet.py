"""A convolutional network for images (Ronneberger et al. 2015; Ho et al. 2020, appendix B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from course_lib.nets.attention import CrossAttention, SelfAttention
from course_lib.nets.embeddings import (
    Condition,
    ConditionedNet,
    ConditionEmbedding,
    Conditioning,
    Context,
    check_inputs,
    zero_init,
)
from course_lib.nets.patches import with_channels

__all__ = ["AttentionBlock", "ResidualBlock", "UNet"]


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels, or of more if four does not divide them."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; time and class scale and shift the second norm.

    References:
        Dhariwal & Nichol 2021, "Diffusion Models Beat GANs", section 3.1 (adaptive group norm).
    """

    def __init__(self, inp: int, out: int, cond_dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inp), nn.Conv2d(inp, out, 3, padding=1)
        self.modulation = nn.Linear(cond_dim, 2 * out)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if inp == out else nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x (B, inp, H, W), given c (B, cond_dim), to (B, out, H, W)."""
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """Attention among the pixels, and to the tokens of a text if there is one."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.attention = SelfAttention(channels, heads)
        self.cross = None if context_dim is None else CrossAttention(channels, context_dim, heads)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # B HW C
        h = self.attention(pixels)
        if self.cross is not None and context is not None:
            h = h + self.cross(pixels, context)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(ConditionedNet):
    """Down to a coarse image, attention there, and up again with skips. Zero at initialisation.

    Any image size will do: a size that does not halve is rounded up, and on the way back the
    image is enlarged to the size that it had.

    Args:
        channels: Channels C of the images.
        width: Channels at full resolution.
        multipliers: Channels of each level in units of `width`; each further level halves H and W.
        heads: Attention heads at the lowest resolution.
        num_classes: Number of classes, if `cond` is to be labels.
        context_dim: Width of the text's tokens, if `cond` is to be a text.
        conditioning: How labels enter: "adaln", "concat" or "cross_attention".
        patch: Side of the squares of pixels that count as one, with the
            channels of all; divides H and W. Few large convolutions cost less than many small ones.

    Raises:
        ValueError: If `multipliers` is empty, `heads` does not divide the channels of the lowest
            level, or both kinds of condition are asked for.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        heads: int = 4,
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        conditioning: Conditioning = "adaln",
        patch: int = 1,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ValueError("multipliers must have at least one level, got none")
        if patch < 1:
            raise ValueError(f"patch must be at least 1, got {patch}")
        self.channels, self.patch = channels, patch
        cond_dim, pixels = 2 * width, channels * patch**2
        sizes = [width * m for m in multipliers]
        self.condition = ConditionEmbedding(cond_dim, num_classes, context_dim, conditioning)
        self.inp = nn.Conv2d(pixels + self.condition.channels, sizes[0], 3, padding=1)
        # Level i has sizes[i] channels; the convolution that halves the image sets the next width.
        self.down = nn.ModuleList(ResidualBlock(n, n, cond_dim) for n in sizes)
        self.shrink = nn.ModuleList(nn.Conv2d(n, m, 3, 2, 1) for n, m in pairwise(sizes))
        self.attention = AttentionBlock(sizes[-1], heads, self.condition.context_dim)
        self.up = nn.ModuleList(ResidualBlock(2 * n, n, cond_dim) for n in sizes)
        self.grow = nn.ModuleList(nn.Conv2d(m, n, 3, padding=1) for n, m in pairwise(sizes))
        self.norm, self.out = _norm(sizes[0]), nn.Conv2d(sizes[0], pixels, 3, padding=1)
        zero_init(self.out)

    def forward(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Map images to images.

        Args:
            x: Images, shape (B, C, H, W).
            t: Times in [0, 1], shape (B,).
            cond: Labels (B,) int64, or tokens (B, N, context_dim) with a bool mask (B, N), True =
                keep; None: no condition.

        Returns:
            Shape of `x`.

        Raises:
            ValueError: If the shape of `x`, `t` or `cond` does not fit.
        """
        check_inputs(x, t, self.channels, None, None)
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"patch {self.patch} must divide H and W of x, got {tuple(x.shape)}")
        c, context, channels = self.condition(t, cond)
        h = self.inp(with_channels(pixel_unshuffle(x, self.patch), channels))
        c, skips = silu(c), []
        for level, block in enumerate(self.down):
            h = block(self.shrink[level - 1](h) if level else h, c)
            skips.append(h)
        h = self.attention(h, context)
        for level in reversed(range(len(skips))):
            h = self.up[level](torch.cat([h, skips[level]], dim=1), c)
            if level:
                finer = interpolate(h, size=skips[level - 1].shape[2:], mode="nearest")
                h = self.grow[level - 1](finer)
        return pixel_shuffle(self.out(silu(self.norm(h))), self.patch)
