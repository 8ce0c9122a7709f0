"""TarFlow: a normalizing flow of causal transformers over the patches of an image.

Zhai et al., 2024, "Normalizing Flows are Capable Generative Models" (arXiv 2412.06329).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from course_lib.flows.flow import Composition, Flow
from course_lib.nets.dit import DiTBlock
from course_lib.nets.embeddings import zero_init
from course_lib.nets.patches import patchify, unpatchify

__all__ = ["CausalTransformerBlock", "TransformerFlow"]

BOUND = 4.0  # of the log of a scale: exp(-4) to exp(4) in each block


class CausalTransformerBlock(Flow):
    """Shift and scale each token by what a causal transformer makes of those before it.

    x_i = mean(x_<i) + exp(s(x_<i)) z_i (ibid., eq. 3). From x to z all tokens go at once; from z
    to x one after the other, each needing the ones before.

    Args:
        tokens: number N of tokens.
        features: numbers D in a token.
        dim: width of the transformer, divisible by `heads`.
        depth: its number of layers.
        heads: attention heads.
        cond_dim: numbers in a condition; it sets the norms of all layers, and the first token.
        backwards: go through the tokens from the last to the first.
    """

    def __init__(
        self,
        tokens: int,
        features: int,
        dim: int,
        depth: int,
        heads: int,
        cond_dim: int = 0,
        backwards: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.cond_dim, self.backwards = (tokens, features), cond_dim, backwards
        self.embed = nn.Linear(features, dim)
        # Where there is no condition, every sample has the same learned one.
        self.given = nn.Linear(cond_dim, dim) if cond_dim else nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 2 * features)
        zero_init(self.out)

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All tokens at once: z_i = (x_i - mean) exp(-s)."""
        x = self._ordered(x)
        c = self._condition(len(x), cond)
        h = torch.cat([c[:, None], self.embed(x[:, :-1])], dim=1) + self.position
        for block in self.blocks:
            h = block(h, silu(c))
        mean, log_scale = self._shift_and_scale(h)
        z = (x - mean) * torch.exp(-log_scale)
        return self._ordered(z), -log_scale.flatten(1).sum(1)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token after the other; keys and values of those before are kept."""
        z = self._ordered(z)
        c = self._condition(len(z), cond)
        seen: list[list[Tensor]] = [[] for _ in self.blocks]
        h, done, log_det = c[:, None], [], z.new_zeros(len(z))
        for i, token in enumerate(z.split(1, dim=1)):
            h = h + self.position[i]
            for block, kept in zip(self.blocks, seen, strict=True):
                h = block(h, silu(c), seen=kept)
            mean, log_scale = self._shift_and_scale(h)
            done.append(mean + log_scale.exp() * token)
            log_det = log_det + log_scale.flatten(1).sum(1)
            h = self.embed(done[-1])
        return self._ordered(torch.cat(done, dim=1)), log_det

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.backwards else x

    def _condition(self, n: int, cond: Tensor | None) -> Tensor:
        return self.given.expand(n, -1) if isinstance(self.given, Tensor) else self.given(cond)

    def _shift_and_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.out(self.norm(h)).chunk(2, dim=-1)
        return mean, BOUND * torch.tanh(raw / BOUND)


class TransformerFlow(Composition):
    """Blocks that go through the patches of an image, forwards and backwards in turn.

    Args:
        image_size: side of the square images in pixels.
        channels: channels C of the images.
        patch: side of a patch in pixels; divides `image_size`.
        dim: width of the transformers, divisible by `heads`.
        n_blocks: number of blocks; two or more, so that every patch can depend on every other.
        depth: layers in each block.
        heads: attention heads.
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if sizes do not divide.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        patch: int = 4,
        dim: int = 128,
        n_blocks: int = 4,
        depth: int = 2,
        heads: int = 4,
        cond_dim: int = 0,
    ) -> None:
        if patch < 1 or image_size % patch:
            raise ValueError(f"patch must divide image_size {image_size}, got {patch}")
        tokens, features = (image_size // patch) ** 2, channels * patch**2
        blocks = [
            CausalTransformerBlock(
                tokens, features, dim, depth, heads, cond_dim, backwards=bool(i % 2)
            )
            for i in range(n_blocks)
        ]
        super().__init__(blocks, (channels, image_size, image_size), cond_dim)
        self.patch = patch

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to images, token by token in each block."""
        return self._in_patches("forward", z, cond)

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From images to noise, all tokens at once."""
        return self._in_patches("inverse", x, cond)

    def _in_patches(self, way: str, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, log_det = getattr(super(), way)(patchify(x, self.patch), cond)
        return unpatchify(tokens, self.patch, *x.shape[2:]), log_det
