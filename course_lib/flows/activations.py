"""Six activations made bijections of the line, with exact inverses and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import elu, leaky_relu, logsigmoid, silu

__all__ = ["ACTIVATIONS", "MIX", "Activation", "find_activation"]

MIX = 0.25
"""Share a of the identity in every activation. Swish, which falls by at most 0.0998 per unit, needs
more than 0.0998 / 1.0998 = 0.091."""


@dataclass(frozen=True)
class Activation:
    """The bijection f(x) = a x + (1 - a) act(x) of the line, with a = ``MIX``.

    Tanh, ELU and softplus are not onto, and swish is not monotone. A share of the identity mends
    both: the derivative of f lies between positive bounds, so f has an inverse everywhere.

    ``act`` stays within known distances ``gap`` of a function of two straight pieces that meet at
    0. That brackets the inverse by an interval whose length does not depend on y, and Newton's
    method does the rest. Where the gap is nothing, the pieces are the answer, in closed form.

    Args:
        name: name of the activation.
        act: the function as it stands.
        derivative: its derivative, in differentiable operations.
        slopes: slopes of the two pieces, left and right of 0.
        gap: bounds of ``act`` minus the two pieces. A little more than they are: Newton's method
            is not to be stopped by rounding where the inverse lies at an end of the bracket.
    """

    name: str
    act: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    slopes: tuple[float, float]
    gap: tuple[float, float] = (0.0, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        """f(x), of any shape."""
        return torch.lerp(self.act(x), x, MIX)

    def slope(self, x: Tensor) -> Tensor:
        """f'(x) > 0, of the shape of x."""
        return MIX + (1 - MIX) * self.derivative(x)

    def log_derivative(self, x: Tensor) -> Tensor:
        """log f'(x), of the shape of x."""
        return self.slope(x).log()

    def inverse(self, y: Tensor) -> Tensor:
        """The x with f(x) = y; differentiable as often as one likes, by the implicit function."""
        if self.gap == (0.0, 0.0):
            return self._of_pieces(y)
        return _Inverse.apply(y, self)

    def bracket(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Two points between which the inverse lies, each of the shape of y."""
        low, high = ((1 - MIX) * gap for gap in self.gap)
        return self._of_pieces(y - high), self._of_pieces(y - low)

    def _of_pieces(self, y: Tensor) -> Tensor:
        """Inverse of f as it would be if ``act`` were its two pieces."""
        left, right = (1 / (MIX + (1 - MIX) * slope) for slope in self.slopes)
        return torch.where(y < 0, left * y, right * y)


class _Inverse(torch.autograd.Function):
    """x = f^-1(y). As f(x) = y, dx = dy / f'(x), where x is this function's own output.

    The saved x belongs to the graph, so derivatives of the derivative come here again.
    """

    @staticmethod
    def forward(y: Tensor, activation: Activation) -> Tensor:
        return _newton(activation, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.activation = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] / ctx.activation.slope(x), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0] / ctx.activation.slope(x)

    @staticmethod
    def vmap(info: Any, in_dims: Any, y: Tensor, activation: Activation) -> tuple[Tensor, int]:
        return _Inverse.apply(y, activation), in_dims[0]


def _newton(activation: Activation, y: Tensor) -> Tensor:
    """Newton's method within a bracket; where a step leaves it or does not shrink, bisection.

    Press et al. 2007, "Numerical Recipes", section 9.4 (``rtsafe``). Newton's error is of the order
    of the square of the last step, so a step of a tenth of the root of the precision is the last.
    """
    lower, upper = activation.bracket(y)
    x, step = (lower + upper) / 2, upper - lower
    tolerance = 0.1 * torch.finfo(y.dtype).eps ** 0.5 * x.abs().clamp(min=1)
    for _ in range(100):
        error = activation(x) - y
        below = error < 0
        lower, upper = torch.where(below, x, lower), torch.where(below, upper, x)
        newton = error / activation.slope(x)
        size, target = newton.abs(), x - newton
        last = size <= tolerance
        safe = (size <= 0.9 * step) & (target >= lower) & (target <= upper)
        target = torch.where(safe | last, target, (lower + upper) / 2)
        x, step = target, (target - x).abs()
        if last.all():
            break
    return x


def _softplus(x: Tensor) -> Tensor:
    return -logsigmoid(-x)  # torch's softplus is x itself from 20 on, 2e-9 off


def _identity(x: Tensor) -> Tensor:
    return x


def _leaky_relu_derivative(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.01, torch.ones_like(x))


def _elu_derivative(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp()


def _tanh_derivative(x: Tensor) -> Tensor:
    return 1 - x.tanh().square()


def _swish_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("softplus", _softplus, torch.sigmoid, (0, 1), (-0.1, 0.8)),
        Activation("leaky_relu", leaky_relu, _leaky_relu_derivative, (0.01, 1)),
        Activation("elu", elu, _elu_derivative, (0, 1), (-1.1, 0.1)),
        Activation("tanh", torch.tanh, _tanh_derivative, (0, 0), (-1.1, 1.1)),
        Activation("swish", silu, _swish_derivative, (0, 1), (-0.3, 0.1)),
        Activation("trivial", _identity, torch.ones_like, (1, 1)),
    )
}
"""The six by name."""


def find_activation(name: str) -> Activation:
    """Look an activation up by its name.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]
