"""Couplings: half of the coordinates change, by a function that the other half decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_lib.flows.flow import Flow
from course_lib.flows.layers import conditioner
from course_lib.flows.linear import check_at_least
from course_lib.flows.splines import rational_quadratic_spline

__all__ = ["ActNorm", "AffineCoupling", "Coupling", "SplineCoupling"]


class ActNorm(Flow):
    """x = exp(l) * z + b, a learned scale and shift for each coordinate.

    It starts as the identity. Glow sets it from the first batch instead; then the weights would
    depend on which process saw which batch, and in what mode, so we do without.

    Args:
        dim: dimension d.

    Raises:
        ValueError: if ``dim`` is smaller than 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.shape, self.cond_dim = (dim,), 0

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, (B, d) -> (B, d) and log abs det, (B,)."""
        return z * self.log_scale.exp() + self.bias, self.log_scale.sum().expand(len(z))

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise, (B, d) -> (B, d) and log abs det, (B,)."""
        return (x - self.bias) * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(x))


class Coupling(Flow):
    """Changes some coordinates, given the others and the condition (Dinh et al., 2015, "NICE").

    Which ones: those whose number has a certain binary digit 0, or 1, as ``index`` says. Over the
    layers all digits have their turn, so any two coordinates meet, neighbours first.

    A subclass implements ``_transform``.

    Args:
        dim: dimension d, at least 2.
        index: place of the layer in the flow, from 0 on.
        hidden: width of the two hidden layers of the network.
        cond_dim: numbers in a condition; 0 for none.
        parameters: numbers that decide how one coordinate changes.

    Raises:
        ValueError: if a size is out of range.
    """

    kept: Tensor
    changed: Tensor

    def __init__(
        self, dim: int, index: int, *, hidden: int, cond_dim: int, parameters: int
    ) -> None:
        super().__init__()
        sizes = {"dim": (dim, 2), "index": (index, 0), "hidden": (hidden, 1)}
        for name, (size, least) in (sizes | {"cond_dim": (cond_dim, 0)}).items():
            check_at_least(name, size, least)
        digit = torch.arange(dim) >> (index // 2 % (dim - 1).bit_length())
        kept, changed = ((digit + index + side) % 2 == 1 for side in (0, 1))
        places = [mask.nonzero()[:, 0] for mask in (kept, changed)]
        for name, place in zip(("kept", "changed"), places, strict=True):
            self.register_buffer(name, place, persistent=False)
        self.net = conditioner(len(places[0]) + cond_dim, hidden, len(places[1]) * parameters)
        self.shape, self.cond_dim = (dim,), cond_dim

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, (B, d) -> (B, d) and log abs det, (B,)."""
        return self._apply_to(z, cond, inverse=False)

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise, (B, d) -> (B, d) and log abs det, (B,)."""
        return self._apply_to(x, cond, inverse=True)

    def _apply_to(self, x: Tensor, cond: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, changed = x.index_select(1, self.kept), x.index_select(1, self.changed)
        told = kept if cond is None else torch.cat([kept, cond], dim=1)
        # Under autocast the network may answer in half precision; the rest is exact.
        parameters = self.net(told).to(x.dtype).unflatten(1, (changed.shape[1], -1))
        changed, log_derivative = self._transform(changed, parameters, inverse)
        return x.index_copy(1, self.changed, changed), log_derivative.sum(1)

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """New values, and log-derivatives, of coordinates (B, n), given (B, n, parameters)."""
        raise NotImplementedError


class AffineCoupling(Coupling):
    """Scales and shifts half of the coordinates (Dinh et al., 2017, "Real NVP", eq. 7).

    Args:
        dim: dimension d, at least 2.
        index: place of the layer in the flow, from 0 on: which coordinates change.
        hidden: width of the two hidden layers of the network.
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if a size is out of range.
    """

    bound = 2.0
    """Largest abs log-scale of one layer."""

    def __init__(self, dim: int, index: int = 0, *, hidden: int = 64, cond_dim: int = 0) -> None:
        super().__init__(dim, index, hidden=hidden, cond_dim=cond_dim, parameters=2)

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        log_scale, shift = parameters.unbind(-1)
        log_scale = self.bound * torch.tanh(log_scale / self.bound)
        if inverse:
            return (x - shift) * (-log_scale).exp(), -log_scale
        return x * log_scale.exp() + shift, log_scale


class SplineCoupling(Coupling):
    """Bends half of the coordinates by splines (Durkan et al., 2019, "Neural Spline Flows").

    From data to noise goes the spline, from noise to data its inverse: training then never takes
    the root that the inverse needs.

    Args:
        dim: dimension d, at least 2.
        index: place of the layer in the flow, from 0 on: which coordinates change.
        hidden: width of the two hidden layers of the network.
        bins: bins of each spline.
        bound: the splines act on [-bound, bound]; beyond, they are the identity.
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        dim: int,
        index: int = 0,
        *,
        hidden: int = 64,
        bins: int = 8,
        bound: float = 5.0,
        cond_dim: int = 0,
    ) -> None:
        check_at_least("bins", bins, 1)
        if not bound > 0:
            raise ValueError(f"bound must be above 0; got {bound}")
        super().__init__(dim, index, hidden=hidden, cond_dim=cond_dim, parameters=3 * bins - 1)
        self.bound = bound

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(x, parameters, self.bound, inverse=not inverse)
