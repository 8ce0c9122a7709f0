"""Attention over a sequence: to itself, or to the tokens of a text.

PyTorch's fused kernel has first derivatives in reverse mode only. Where a method needs second
derivatives or forward mode (`torch.func.jvp`), call the net within
`torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from course_lib.nets.embeddings import Context, zero_init

__all__ = ["CrossAttention", "SelfAttention", "attention_maps"]


class SelfAttention(nn.Module):
    """Each position looks at all positions (Vaswani et al. 2017, section 3.2.2).

    Args:
        dim: Width of the sequence.
        heads: Number of heads; divides `dim`.
        causal: Whether each position looks only at itself and at those before it.

    Raises:
        ValueError: If `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Attend.

        Args:
            x: Sequence, shape (B, N, dim).
            seen: To go through a sequence one position a call (N = 1): an empty list at the first
                call, and the same list at the next ones. It gathers the keys and values.

        Returns:
            Shape of `x`.
        """
        q, k, v = (_split(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if seen is None:
            return self.out(_merge(scaled_dot_product_attention(q, k, v, is_causal=self.causal)))
        seen[:] = [torch.cat(pair, dim=2) for pair in zip(seen, (k, v), strict=False)] or [k, v]
        return self.out(_merge(scaled_dot_product_attention(q, seen[0], seen[1])))


class CrossAttention(nn.Module):
    """Each position looks at the kept tokens of a text; zero at initialisation.

    Args:
        dim: Width of the sequence.
        context_dim: Width of the tokens.
        heads: Number of heads; divides `dim`.

    Raises:
        ValueError: If `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        zero_init(self.out)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Attend, x (B, N, dim) to tokens (B, M, context_dim) with mask (B, M) -> (B, N, dim)."""
        tokens, mask = context
        q = _split(self.query(x), self.heads)
        k, v = (_split(part, self.heads) for part in self.key_value(tokens).chunk(2, dim=-1))
        # The mask is one for all heads and all positions: (B, 1, 1, M).
        return self.out(_merge(scaled_dot_product_attention(q, k, v, mask[:, None, None])))

    def weights(self, x: Tensor, context: Context) -> Tensor:
        """How much each position looks at each token: softmax(q k^T / sqrt(d)).

        Args:
            x: As for `forward`.
            context: As for `forward`.

        Returns:
            Shape (B, heads, N, M); each row sums to 1, and is 0 at tokens that are not kept.
        """
        tokens, mask = context
        q = _split(self.query(x), self.heads)
        k = _split(self.key_value(tokens).chunk(2, dim=-1)[0], self.heads)
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        return logits.masked_fill(~mask[:, None, None], -math.inf).softmax(-1)


@torch.no_grad()
def attention_maps(net: nn.Module, *inputs: Any) -> list[Tensor]:
    """What the positions of a net look at: the weights of every CrossAttention in it.

    Args:
        net: A net with cross-attention.
        inputs: What the net is called with: x, t, cond.

    Returns:
        For each layer in order of use a tensor of shape (B, heads, N, M), with N positions of the
        image, row by row, and M tokens, of which the first is the learned one that is always kept.

    Raises:
        ValueError: If the net has no cross-attention.
    """
    maps: list[Tensor] = []
    layers = [module for module in net.modules() if isinstance(module, CrossAttention)]
    if not layers:
        raise ValueError(f"net must have cross-attention; {type(net).__name__} has none")
    hooks = [
        layer.register_forward_hook(lambda layer, seen, _: maps.append(layer.weights(*seen)))
        for layer in layers
    ]
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"heads must divide the width {dim}, got {heads}")


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)
