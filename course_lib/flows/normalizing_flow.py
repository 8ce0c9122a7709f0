"""Normalizing flows of vectors: plain layers, affine couplings, spline couplings."""

from __future__ import annotations

from course_lib.flows.activations import find_activation
from course_lib.flows.coupling_layers import ActNorm, AffineCoupling, SplineCoupling
from course_lib.flows.flow import Composition, Flow
from course_lib.flows.layers import FlowLayer
from course_lib.flows.linear import check_at_least

__all__ = ["NeuralSplineFlow", "NormalizingFlow", "RealNVP"]


class NormalizingFlow(Composition):
    """Plain layers, then a linear one: each a matrix and an activation that is a bijection.

    With ``n_flows=0`` it is a Gaussian of any mean and covariance, for each condition.

    Args:
        dim: dimension d of the data.
        n_flows: number of layers with the activation.
        activation: "softplus", "leaky_relu", "elu", "tanh", "swish" or "trivial".
        cond_dim: numbers in a condition; 0 for none.
        linear: "plu" or "orthogonal", the form of the matrices.

    Raises:
        ValueError: if a name is unknown, ``dim`` smaller than 1, or another size smaller than 0.
    """

    def __init__(
        self,
        dim: int,
        n_flows: int = 3,
        activation: str = "softplus",
        cond_dim: int = 0,
        *,
        linear: str = "plu",
    ) -> None:
        check_at_least("n_flows", n_flows, 0)
        names = [find_activation(activation).name] * n_flows + ["trivial"]
        layers = [FlowLayer(dim, name, linear=linear, cond_dim=cond_dim) for name in names]
        super().__init__(layers, (dim,), cond_dim)


class RealNVP(Composition):
    """Affine couplings, each with an ActNorm on its side of the data.

    Dinh et al. 2017, "Density estimation using Real NVP"; the normalisation is that of Glow
    (Kingma & Dhariwal, 2018).

    Args:
        dim: dimension d of the data, at least 2.
        n_layers: number of couplings.
        hidden: width of the two hidden layers of each coupling's network.
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if ``dim`` is smaller than 2, or another size out of range.
    """

    def __init__(self, dim: int, n_layers: int = 8, hidden: int = 64, cond_dim: int = 0) -> None:
        check_at_least("n_layers", n_layers, 1)
        layers: list[Flow] = []
        for i in range(n_layers):
            layers += [AffineCoupling(dim, i, hidden=hidden, cond_dim=cond_dim), ActNorm(dim)]
        super().__init__(layers, (dim,), cond_dim)


class NeuralSplineFlow(Composition):
    """Spline couplings, then a linear layer that brings the data within the splines' bound.

    Durkan et al. 2019, "Neural Spline Flows".

    Args:
        dim: dimension d of the data, at least 2.
        n_layers: number of couplings.
        hidden: width of the two hidden layers of each coupling's network.
        bins: bins of each spline.
        bound: the splines act on [-bound, bound]; beyond, they are the identity.
        cond_dim: numbers in a condition; 0 for none.

    Raises:
        ValueError: if ``dim`` is smaller than 2, or another size out of range.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 6,
        hidden: int = 64,
        bins: int = 8,
        bound: float = 5.0,
        cond_dim: int = 0,
    ) -> None:
        check_at_least("n_layers", n_layers, 1)
        layers: list[Flow] = [
            SplineCoupling(dim, i, hidden=hidden, bins=bins, bound=bound, cond_dim=cond_dim)
            for i in range(n_layers)
        ]
        last = FlowLayer(dim, "trivial", cond_dim=cond_dim)
        super().__init__([*layers, last], (dim,), cond_dim)
