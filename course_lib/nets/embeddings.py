"""What a network is told besides x: the time, and a class label or a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Condition", "ConditionEmbedding", "Context", "check_inputs", "sinusoidal"]

Context = tuple[Tensor, Tensor]
"""A text: tokens (B, N, D) and a bool mask (B, N), True = keep."""

Condition = Tensor | Context | None
"""What every net takes as `cond`: labels (B,) int64, a `Context`, or nothing."""


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines and sines of 1000 t at geometrically spaced frequencies.

    Args:
        t: Times in [0, 1], shape (B,). The factor 1000 brings them to the scale of DDPM's steps.
        dim: Number of features, even.
        max_period: The longest period is 2 pi max_period, in units of 1/1000.

    Returns:
        Features in [-1, 1], shape (B, dim).

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))  # 1000 t needs more than half precision
    exponents = torch.arange(dim // 2, dtype=t.dtype, device=t.device) / (dim // 2)
    angles = 1000 * t[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def check_inputs(x: Tensor, t: Tensor, *sizes: int | None) -> None:
    """Check that x is (B, *sizes), None being any size, and that t is (B,).

    Raises:
        ValueError: If the shape of `x` or of `t` is another.
    """
    wanted = ", ".join("any" if size is None else str(size) for size in sizes)
    fits = x.ndim == 1 + len(sizes) and all(
        size in (None, got) for size, got in zip(sizes, x.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"x must have shape (B, {wanted}), got {tuple(x.shape)}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape ({len(x)},), one time a sample, got {tuple(t.shape)}")


class ConditionEmbedding(nn.Module):
    """Embeds the time, with a class label if there are classes, and prepares a text.

    "No condition" is itself a condition, which classifier-free guidance needs: among labels it
    is the last index, `num_classes`; among texts it is the text with no token kept. `cond=None`
    means just that.

    Args:
        dim: Width of the embedding.
        num_classes: Number of classes, if `cond` is to be labels.
        context_dim: Width of the tokens, if `cond` is to be a text.

    Raises:
        ValueError: If both `num_classes` and `context_dim` are given.
    """

    def __init__(
        self, dim: int, *, num_classes: int | None = None, context_dim: int | None = None
    ) -> None:
        super().__init__()
        if num_classes is not None and context_dim is not None:
            raise ValueError("num_classes and context_dim exclude each other: give at most one")
        self.num_classes, self.context_dim, self.features = num_classes, context_dim, 64
        self.time = nn.Sequential(nn.Linear(self.features, dim), nn.SiLU(), nn.Linear(dim, dim))
        if num_classes is not None:
            self.label = nn.Embedding(num_classes + 1, dim)
        if context_dim is not None:
            self.null_token = nn.Parameter(torch.randn(context_dim) * 0.02)

    def forward(self, t: Tensor, cond: Condition = None) -> tuple[Tensor, Context | None]:
        """Embed.

        Args:
            t: Times, shape (B,).
            cond: What the net was built for, or None.

        Returns:
            The embedding (B, dim) of time and label, and None or the text as (tokens, mask) with
            a learned token in front that is always kept, so that attention over a text with no
            token is defined.

        Raises:
            ValueError: If `cond` is not what the net was built for, or has a wrong shape.
        """
        dtype = next(self.time.parameters()).dtype
        vector = self.time(sinusoidal(t, self.features).to(dtype))
        if self.num_classes is not None:
            return vector + self.label(_labels(cond, t, self.num_classes)), None
        if self.context_dim is not None:
            return vector, self._context(cond, t)
        if cond is not None:
            raise ValueError(
                "cond must be None: the net was built with neither num_classes nor context_dim; "
                "leave the labels out (`images, _ = digits()`), or build it with num_classes"
            )
        return vector, None

    def _context(self, cond: Condition, t: Tensor) -> Context:
        null = self.null_token.expand(len(t), 1, -1)
        keep = torch.ones(len(t), 1, dtype=torch.bool, device=t.device)
        if cond is None:
            return null, keep
        tokens, mask = _text(cond, len(t), null.shape[-1])
        return torch.cat([null, tokens], dim=1), torch.cat([keep, mask], dim=1)


def _labels(cond: Condition, t: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) as they came, or the label that means none."""
    if cond is None:
        return torch.full(t.shape, num_classes, device=t.device)
    if not isinstance(cond, Tensor) or cond.shape != t.shape or cond.dtype != torch.int64:
        raise ValueError(f"cond must be labels ({len(t)},) int64, got {_describe(cond)}")
    # On an accelerator this check would stall each step; there the embedding has its own.
    if cond.device.type == "cpu" and ((cond < 0) | (cond > num_classes)).any():
        got = sorted(set(cond.tolist()))
        raise ValueError(f"cond must be labels 0 to {num_classes} (the last: no label), got {got}")
    return cond


def _text(cond: Condition, batch: int, dim: int) -> Context:
    """Tokens and mask as they came."""
    if isinstance(cond, tuple) and len(cond) == 2 and all(isinstance(c, Tensor) for c in cond):
        tokens, mask = cond
        shaped = tokens.ndim == 3 and (len(tokens), tokens.shape[2]) == (batch, dim)
        if shaped and mask.shape == tokens.shape[:2] and mask.dtype == torch.bool:
            return tokens, mask
    wanted = f"tokens ({batch}, N, {dim}) with a bool mask ({batch}, N)"
    raise ValueError(f"cond must be {wanted}, got {_describe(cond)}")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return type(value).__name__
