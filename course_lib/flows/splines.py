"""Monotone rational-quadratic splines with linear tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

__all__ = ["rational_quadratic_spline"]

LEAST = 1e-3
"""Least width and height of a bin, as a share of the whole, and least slope at a knot."""


def rational_quadratic_spline(
    x: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """A monotone spline of K bins from [-bound, bound] onto itself, and the identity beyond.

    Parameters of 0 give the identity. Durkan et al. 2019, "Neural Spline Flows", equations 4 to 8
    and section 3.1.

    Args:
        x: points, of any shape.
        parameters: shape (*x.shape, 3 K - 1): K widths, K heights and K - 1 inner slopes, each any
            number.
        bound: half the length of the interval, above 0.
        inverse: apply the inverse of the spline.

    Returns:
        The value, and the logarithm of its derivative, each of the shape of x.

    Raises:
        ValueError: if the shapes do not fit, or ``bound`` is not positive.
    """
    _check(x, parameters, bound)
    knots = _knots(parameters, bound)
    inside = x.clamp(-bound, bound)
    # The slope at both ends is 1, so that this is the line beyond them.
    outside = x - inside
    (x0, x1), (y0, y1), (d0, d1) = _at_bin(knots, inside, axis=1 if inverse else 0)
    width, height = x1 - x0, y1 - y0
    slope = height / width
    bend = d0 + d1 - 2 * slope
    theta = _root(inside - y0, height, slope, bend, d0) if inverse else (inside - x0) / width
    product = theta * (1 - theta)
    denominator = slope + bend * product
    numerator = d1 * theta.square() + 2 * slope * product + d0 * (1 - theta).square()
    log_slope = 2 * (slope.log() - denominator.log()) + numerator.log()  # equation 5
    if inverse:
        return x0 + theta * width + outside, -log_slope
    share = (slope * theta.square() + d0 * product) / denominator  # equation 4
    return y0 + height * share + outside, log_slope


def _check(x: Tensor, parameters: Tensor, bound: float) -> None:
    bins, rest = divmod(parameters.shape[-1] + 1, 3)
    if parameters.shape[:-1] != x.shape or rest or bins < 1:
        wanted = ", ".join(map(str, (*x.shape, "3 K - 1")))
        raise ValueError(f"parameters must have shape ({wanted}); got {tuple(parameters.shape)}")
    if not bound > 0:
        raise ValueError(f"bound must be above 0; got {bound}")


def _knots(parameters: Tensor, bound: float) -> Tensor:
    """Places, values and slopes at the K + 1 knots, shape (..., 3, K + 1)."""
    bins = (parameters.shape[-1] + 1) // 3
    sizes = parameters[..., : 2 * bins].unflatten(-1, (2, bins)).softmax(-1)
    sizes = LEAST + (1 - bins * LEAST) * sizes
    inner = sizes[..., :-1].cumsum(-1) * (2 * bound) - bound
    ends = pad(pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    shift = math.log(math.expm1(1 - LEAST))  # a parameter of 0 is a slope of 1
    slopes = LEAST + softplus(parameters[..., 2 * bins :] + shift)
    return torch.cat([ends, pad(slopes, (1, 1), value=1.0).unsqueeze(-2)], dim=-2)


def _at_bin(knots: Tensor, x: Tensor, axis: int) -> tuple[tuple[Tensor, ...], ...]:
    """Places, values and slopes at both ends of the bin in which x lies, along the axis."""
    k = (knots[..., axis, 1:-1] <= x.unsqueeze(-1)).sum(-1, keepdim=True)
    index = torch.cat([k, k + 1], dim=-1).unsqueeze(-2).expand(*x.shape, 3, 2)
    ends = knots.gather(-1, index)
    return tuple(ends[..., i, :].unbind(-1) for i in range(3))


def _root(rise: Tensor, height: Tensor, slope: Tensor, bend: Tensor, d0: Tensor) -> Tensor:
    """Where in its bin, in [0, 1], the spline has risen so much: equations 6 to 8."""
    a = height * (slope - d0) + rise * bend
    b = height * d0 - rise * bend
    c = -slope * rise
    return 2 * c / (-b - (b.square() - 4 * a * c).sqrt())
