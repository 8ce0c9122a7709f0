"""What a network is told besides x: the time, and a class label or a text."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

__all__ = [
    "Condition",
    "ConditionEmbedding",
    "ConditionedNet",
    "Conditioning",
    "Context",
    "Embedded",
    "check_inputs",
    "sinusoidal",
    "zero_init",
]

Context = tuple[Tensor, Tensor]
"""A text: tokens (B, N, D) and a bool mask (B, N), True = keep."""

Condition = Tensor | Context | None
"""What every net takes as `cond`: labels (B,) int64, a `Context`, or nothing."""

Conditioning = Literal["adaln", "concat", "cross_attention"]
"""How a label enters: added to the time, as channels beside the image, or as tokens to look at."""

LABEL_CHANNELS, LABEL_TOKENS = 8, 4


class Embedded(NamedTuple):
    """Time and condition, in the forms in which a net takes them up."""

    vector: Tensor
    """What scales and shifts the norms, shape (B, dim)."""
    context: Context | None
    """What cross-attention looks at: tokens (B, N, D) with a mask (B, N); or None."""
    channels: Tensor | None
    """What stands beside the image at every pixel, shape (B, LABEL_CHANNELS); or None."""


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0, rate: float = 1000.0) -> Tensor:
    """Cosines and sines of ``rate * t`` at geometrically spaced frequencies.

    Args:
        t: Times in [0, 1], shape (B,).
        dim: Number of features, even.
        max_period: The longest period is 2 pi max_period, in units of 1/rate.
        rate: The highest frequency. 1000 brings times to the scale of DDPM's steps.

    Returns:
        Features in [-1, 1], shape (B, dim).

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))  # rate t needs more than half precision
    exponents = torch.arange(dim // 2, dtype=t.dtype, device=t.device) / (dim // 2)
    angles = rate * t[:, None] * torch.exp(-math.log(max_period) * exponents)
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


def zero_init(*layers: nn.Module) -> None:
    """Set weights and biases to zero: what comes out starts as nothing."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


class ConditionEmbedding(nn.Module):
    """Embeds the time, with a class label if there are classes, and prepares a text.

    "No condition" is itself a condition, which classifier-free guidance needs: among labels it
    is the last index, `num_classes`; among texts it is the text with no token kept. `cond=None`
    means just that.

    Args:
        dim: Width of the embedding.
        num_classes: Number of classes, if `cond` is to be labels.
        context_dim: Width of the tokens, if `cond` is to be a text.
        conditioning: How labels enter: "adaln" adds their embedding to that of the time; "concat"
            gives channels that stand beside the image; "cross_attention" makes of each label a few
            learned tokens of width `dim`, a text of its own.

    Raises:
        ValueError: If both `num_classes` and `context_dim` are given, or `conditioning` is none of
            these.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        context_dim: int | None = None,
        conditioning: Conditioning = "adaln",
    ) -> None:
        super().__init__()
        if num_classes is not None and context_dim is not None:
            raise ValueError("num_classes and context_dim exclude each other: give at most one")
        if conditioning not in get_args(Conditioning):
            known = ", ".join(get_args(Conditioning))
            raise ValueError(f"conditioning must be one of {known}; got {conditioning!r}")
        self.num_classes, self.features, self.rate = num_classes, 64, 1000.0
        self.conditioning = conditioning if num_classes is not None else None
        self.time = nn.Sequential(nn.Linear(self.features, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.context_dim = dim if self.conditioning == "cross_attention" else context_dim
        if num_classes is not None:
            sizes = {"adaln": dim, "concat": LABEL_CHANNELS, "cross_attention": LABEL_TOKENS * dim}
            self.label = nn.Embedding(num_classes + 1, sizes[conditioning])
        if self.context_dim is not None:
            self.null_token = nn.Parameter(torch.randn(self.context_dim) * 0.02)

    @property
    def channels(self) -> int:
        """How many channels stand beside the image."""
        return LABEL_CHANNELS if self.conditioning == "concat" else 0

    def forward(self, t: Tensor, cond: Condition = None) -> Embedded:
        """Embed.

        Args:
            t: Times, shape (B,).
            cond: What the net was built for, or None.

        Returns:
            The embedding (B, dim) of time and label; None or the tokens with their mask, a
            learned token in front that is always kept, so that attention over a text with no
            token is defined; None or the channels.

        Raises:
            ValueError: If `cond` is not what the net was built for, or has a wrong shape.
        """
        dtype = next(self.time.parameters()).dtype
        vector = self.time(sinusoidal(t, self.features, rate=self.rate).to(dtype))
        if self.num_classes is not None:
            return self._with_label(vector, _labels(cond, t, self.num_classes))
        if self.context_dim is not None:
            text = None if cond is None else _text(cond, len(t), self.context_dim)
            return Embedded(vector, self._context(text, len(t)), None)
        if cond is not None:
            raise ValueError(
                "cond must be None: the net was built with neither num_classes nor context_dim; "
                "leave the labels out (`images, _ = digits()`), or build it with num_classes"
            )
        return Embedded(vector, None, None)

    def null_condition(self, cond: Condition) -> Condition:
        """The condition that means none, for as many samples as `cond` has.

        Raises:
            ValueError: If the net takes no condition, or `cond` is of another kind.
        """
        wanted = "None: the net was built without num_classes and context_dim"
        if self.num_classes is not None:
            if isinstance(cond, Tensor):
                return torch.full_like(cond, self.num_classes)
            wanted = "labels"
        elif self.context_dim is not None:
            if isinstance(cond, tuple):
                return cond[0], torch.zeros_like(cond[1])
            wanted = "tokens with a mask"
        raise ValueError(f"cond must be {wanted}; got {_describe(cond)}")

    def _with_label(self, vector: Tensor, labels: Tensor) -> Embedded:
        if self.conditioning == "adaln":
            return Embedded(vector + self.label(labels), None, None)
        if self.conditioning == "concat":
            return Embedded(vector, None, self.label(labels))
        tokens = self.label(labels).unflatten(1, (LABEL_TOKENS, -1))
        mask = labels.ne(self.num_classes or 0)[:, None].expand(-1, LABEL_TOKENS)
        return Embedded(vector, self._context((tokens, mask), len(labels)), None)

    def _context(self, text: Context | None, batch: int) -> Context:
        null = self.null_token.expand(batch, 1, -1)
        keep = torch.ones(batch, 1, dtype=torch.bool, device=null.device)
        if text is None:
            return null, keep
        return torch.cat([null, text[0]], dim=1), torch.cat([keep, text[1]], dim=1)


class ConditionedNet(nn.Module):
    """A net that takes time and condition through one `ConditionEmbedding`."""

    condition: ConditionEmbedding

    def null_condition(self, cond: Condition) -> Condition:
        """The condition that means none; see `ConditionEmbedding.null_condition`."""
        return self.condition.null_condition(cond)


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
