"""A transformer for images (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

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
from course_lib.nets.patches import patchify, position_embedding, unpatchify, with_channels

__all__ = ["DiT", "DiTBlock"]


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _xavier(module: nn.Module) -> None:
    """Initialise linear layers as DiT's authors do; those that are zero stay zero."""
    if isinstance(module, nn.Linear) and module.weight.any():
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class DiTBlock(nn.Module):
    """A transformer block with adaptive layer norm, adaLN-zero (ibid., section 3.2).

    Time and class set shift, scale and gate of both parts. The gates start at zero, so that the
    block starts as the identity. With `context_dim`, attention to the text comes in between. If
    `causal`, a position sees only those before it and itself.
    """

    def __init__(
        self, dim: int, heads: int, context_dim: int | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        zero_init(self.modulation)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(dim, heads, causal)
        self.cross = None if context_dim is None else CrossAttention(dim, context_dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        context: Context | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """Map x (B, N, dim), given c (B, dim) and perhaps a text, to (B, N, dim).

        `seen`, as in `SelfAttention`, is for one position a call.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(_modulate(self.norm(x), shift1, scale1), seen)
        if self.cross is not None and context is not None:
            x = x + self.cross(self.norm(x), context)
        return x + gate2 * self.mlp(_modulate(self.norm(x), shift2, scale2))


class DiT(ConditionedNet):
    """Diffusion transformer: patches -> tokens -> blocks -> patches. Zero at initialisation.

    Args:
        image_size: Side of the square images in pixels.
        channels: Channels C of the images.
        patch: Side of a patch in pixels; divides `image_size`.
        dim: Width of the tokens, divisible by 4 and by `heads`.
        depth: Number of blocks.
        heads: Number of attention heads.
        num_classes: Number of classes, if `cond` is to be labels.
        context_dim: Width of the text's tokens, if `cond` is to be a text.
        conditioning: How labels enter: "adaln", "concat" or "cross_attention".

    Raises:
        ValueError: If sizes do not divide, or both kinds of condition are asked for.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        patch: int = 2,
        dim: int = 96,
        depth: int = 4,
        heads: int = 4,
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        conditioning: Conditioning = "adaln",
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"patch must divide image_size {image_size}, got {patch}")
        if dim % 4:
            raise ValueError(f"dim must be divisible by 4, got {dim}")
        self.image_size, self.channels, self.patch = image_size, channels, patch
        self.condition = ConditionEmbedding(dim, num_classes, context_dim, conditioning)
        self.embed = nn.Linear((channels + self.condition.channels) * patch**2, dim)
        self.register_buffer("position", position_embedding(image_size // patch, dim))
        self.blocks = nn.ModuleList(
            DiTBlock(dim, heads, self.condition.context_dim) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels * patch**2)
        self.apply(_xavier)
        zero_init(self.modulation, self.out)

    def forward(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Map images to images.

        Args:
            x: Images, shape (B, C, image_size, image_size).
            t: Times in [0, 1], shape (B,).
            cond: Labels (B,) int64, or tokens (B, N, context_dim) with a bool mask (B, N), True =
                keep; None: no condition.

        Returns:
            Shape of `x`.

        Raises:
            ValueError: If the shape of `x`, `t` or `cond` does not fit.
        """
        check_inputs(x, t, self.channels, self.image_size, self.image_size)
        c, context, channels = self.condition(t, cond)
        h = self.embed(patchify(with_channels(x, channels), self.patch)) + self.position
        c = silu(c)
        for block in self.blocks:
            h = block(h, c, context)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        h = self.out(_modulate(self.norm(h), shift, scale))
        return unpatchify(h, self.patch, self.image_size, self.image_size)
