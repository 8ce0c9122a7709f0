"""A transformer that reads a prompt (Radford et al. 2021, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_lib.nets.attention import SelfAttention
from course_lib.nets.embeddings import Context

__all__ = ["TextEncoder"]


class _Block(nn.Module):
    """Attention to the words before, and a layer for each word; norms in front of both."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), SelfAttention(dim, heads, causal=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Word numbers -> tokens, each of which knows the words before it.

    Attention is causal, as in CLIP. Since padding stands behind the words, no word sees it.

    Args:
        vocabulary: Number of words, those that mark padding (0), begin and end included.
        dim: Width D of the tokens.
        depth: Number of blocks.
        heads: Attention heads; divides `dim`.
        max_length: Words of a text at most, marks included.
    """

    def __init__(
        self, vocabulary: int, dim: int = 64, depth: int = 2, heads: int = 4, max_length: int = 20
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(0.02 * torch.randn(max_length, dim))
        nn.init.normal_(self.word.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Context:
        """Encode texts.

        Args:
            ids: Numbers of the words, int64 of shape (B, N), padded with 0 at the end.

        Returns:
            Tokens (B, N, D) and a bool mask (B, N), True where there is a word.

        Raises:
            ValueError: If the texts are too long, or `ids` is something else.
        """
        longest = len(self.position)
        if ids.ndim != 2 or ids.dtype != torch.int64 or ids.shape[1] > longest:
            raise ValueError(
                f"ids must be int64 of shape (B, N), N at most {longest}; "
                f"got {tuple(ids.shape)} {ids.dtype}"
            )
        x = self.word(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x), ids != 0

    def pooled(self, ids: Tensor) -> Tensor:
        """One vector for each text: its last token, which has seen all words; (B, N) -> (B, D)."""
        tokens, mask = self(ids)
        last = mask.sum(1).sub(1).clamp(min=0)
        return tokens[torch.arange(len(ids), device=ids.device), last]
