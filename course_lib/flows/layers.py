"""The plain layer of a normalizing flow: a linear map, then an activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_lib.flows.activations import find_activation
from course_lib.flows.flow import Flow
from course_lib.flows.linear import check_at_least, find_linear
from course_lib.nets.embeddings import zero_init

__all__ = ["FlowLayer", "conditioner"]


def conditioner(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A perceptron with two hidden layers whose output starts at zero, (B, inputs) -> (B, outputs).

    Its activation is smooth, and so is the score of a flow that it steers.
    """
    last = nn.Linear(hidden, outputs)
    zero_init(last)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
    )


class FlowLayer(Flow):
    """x = act(W (exp(s(c)) * z) + b + b(c)), with an activation that is a bijection.

    The condition c scales before the matrix and shifts after it (FiLM, Perez et al., 2018). So one
    layer with the activation "trivial" is any Gaussian N(b(c), W exp(2 s(c)) W'), and exact for
    Gaussian data at every noise level: noise changes the eigenvalues of their covariance alone.

    Args:
        dim: dimension d.
        activation: "softplus", "leaky_relu", "elu", "tanh", "swish" or "trivial".
        linear: "plu" or "orthogonal".
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if a name is unknown, ``dim`` smaller than 1 or ``cond_dim`` smaller than 0.
    """

    bound = 8.0
    """Largest abs s(c); data whose noise is 3,000 times smaller than they are."""
    hidden = 64

    def __init__(
        self, dim: int, activation: str, *, linear: str = "plu", cond_dim: int = 0
    ) -> None:
        super().__init__()
        check_at_least("cond_dim", cond_dim, 0)
        self.activation = find_activation(activation)
        # Standard normal data are at first brought to noise of mean 0 and variance 1.
        probes = torch.special.ndtri(torch.arange(1, 1000) / 1000)
        variance, mean = torch.var_mean(self.activation.inverse(probes))
        self.linear = find_linear(linear)(dim, variance.sqrt().item())
        self.bias = nn.Parameter(mean.repeat(dim))
        if cond_dim:
            self.film = conditioner(cond_dim, self.hidden, 2 * dim)
        self.shape, self.cond_dim = (dim,), cond_dim

    def forward(self, z: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, (B, d) -> (B, d) and log abs det, (B,)."""
        log_scale, shift = self._film(cond)
        with _full_precision(z):
            y = self.linear(z * log_scale.exp()) + shift
        return self.activation(y), self._log_det(y, log_scale)

    def inverse(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise, (B, d) -> (B, d) and log abs det, (B,)."""
        log_scale, shift = self._film(cond)
        y = self.activation.inverse(x)
        with _full_precision(x):
            z = self.linear.inverse(y - shift) * (-log_scale).exp()
        return z, -self._log_det(y, log_scale)

    def _film(self, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """s and the whole shift, each of shape (B, d), or (d,) without a condition."""
        if cond is None:
            return torch.zeros_like(self.bias), self.bias
        log_scale, shift = self.film(cond).to(self.bias.dtype).chunk(2, dim=1)
        return self.bound * torch.tanh(log_scale / self.bound), self.bias + shift

    def _log_det(self, y: Tensor, log_scale: Tensor) -> Tensor:
        """Of the whole layer, whose activation acts on y."""
        return (self.activation.log_derivative(y) + log_scale).sum(1) + self.linear.log_abs_det()


def _full_precision(x: Tensor) -> torch.autocast:
    """No autocast: a rounded matrix would not have the determinant that it is said to have."""
    return torch.autocast(x.device.type, enabled=False)
