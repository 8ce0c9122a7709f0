"""What a normalizing flow is: a bijection with a known Jacobian between data and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Composition", "Flow", "standard_normal_log_prob"]


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over all but the first dimension, (B, ...) -> (B,)."""
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


class Flow(nn.Module):
    """A bijection z -> x whose Jacobian determinant is known both ways.

    With z ~ N(0, I) the change of variables gives the density of x, and it needs the way *back*:
    log p(x) = log N(z; 0, I) + log abs det dz/dx at z = f^-1(x)
    (Rezende & Mohamed, 2015, "Variational Inference with Normalizing Flows").

    A subclass sets ``shape`` and ``cond_dim``, and implements :meth:`forward` and :meth:`inverse`.
    """

    shape: tuple[int, ...]
    """Shape of one sample, without the batch."""
    cond_dim: int
    """Numbers in a condition; 0 if the flow takes none."""

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data: z (B, ...) -> x (B, ...) and log abs det dx/dz, (B,)."""
        raise NotImplementedError

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise: x (B, ...) -> z (B, ...) and log abs det dz/dx, (B,)."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x | cond) in nats, through the inverse.

        Args:
            x: samples, shape ``(B, *shape)``.
            cond: features of the condition, shape (B, cond_dim), if the flow takes one.

        Returns:
            Shape (B,).

        Raises:
            ValueError: if a shape does not fit, or a condition is missing or not taken.
        """
        self._check(x, cond)
        z, log_det = self.inverse(x, cond)
        return standard_normal_log_prob(z) + log_det

    def forward_with_base_samples(
        self, z: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Push base samples to data, and tell the log-density of what comes out.

        Args:
            z: draws from N(0, I), shape ``(B, *shape)``.
            cond: as for :meth:`log_prob`.

        Returns:
            x of shape ``(B, *shape)``, and log p(x | cond) of shape (B,): the log-density of the
            base at z less log abs det dx/dz.

        Raises:
            ValueError: as :meth:`log_prob`.
        """
        self._check(z, cond)
        x, log_det = self(z, cond)
        return x, standard_normal_log_prob(z) - log_det

    @torch.no_grad()
    def sample(
        self, n: int, cond: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n samples, shape ``(n, *shape)``; ``cond`` as for :meth:`log_prob`."""
        parameter = next(self.parameters())
        z = torch.empty(n, *self.shape, dtype=parameter.dtype, device=parameter.device)
        return self.forward_with_base_samples(z.normal_(generator=generator), cond)[0]

    def _check(self, x: Tensor, cond: Tensor | None) -> None:
        if x.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"x must have shape ({wanted}); got {tuple(x.shape)}")
        wanted_cond = (len(x), self.cond_dim) if self.cond_dim else None
        got = None if cond is None else tuple(cond.shape)
        if got != wanted_cond:
            raise ValueError(f"cond must be {_of_shape(wanted_cond)}; got {_of_shape(got)}")


def _of_shape(shape: Any) -> str:
    return "None" if shape is None else f"of shape {shape}"


class Composition(Flow):
    """Flows one after the other: z goes through the first of ``layers`` first.

    Args:
        layers: flows of the same shape and the same ``cond_dim`` (or 0, which are not told).
        shape: shape of one sample.
        cond_dim: numbers in a condition.
    """

    def __init__(self, layers: Sequence[Flow], shape: tuple[int, ...], cond_dim: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shape, self.cond_dim = shape, cond_dim

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, layer by layer; the log-determinants add up."""
        return self._through(list(self.layers), "forward", z, cond)

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise, the last layer first."""
        return self._through(list(self.layers)[::-1], "inverse", x, cond)

    def _through(
        self, layers: list[Any], way: str, x: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in layers:
            x, log_det = getattr(layer, way)(x, cond if layer.cond_dim else None)
            total = total + log_det
        return x, total
