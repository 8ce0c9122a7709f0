"""Monotone rational-quadratic splines with linear tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["rational_quadratic_spline"]

LEAST = 1e-2
"""Least width and height of a bin, as a share of their mean, and least slope at a knot."""


def rational_quadratic_spline(
    x: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """A monotone spline of K bins from [-bound, bound] onto itself, and the identity beyond.

    Parameters of 0 give the identity. Durkan et al. 2019, "Neural Spline Flows", equations 4 to 8
    and section 3.1.

    Args:
        x: points, of any shape.
        parameters: shape ``(*x.shape, 3 K - 1)``: K widths, K heights and K - 1 inner slopes, each
            any number.
        bound: half the length of the interval, above 0.
        inverse: apply the inverse of the spline.

    Returns:
        The value, and the logarithm of its derivative, each of the shape of x.

    Raises:
        ValueError: if the shapes do not fit, or ``bound`` is not positive.
    """
    _check(x, parameters, bound)
    inside = x.clamp(-bound, bound)
    outside = x - inside  # the slope at both ends is 1: the line goes on
    x0, y0, d0, x1, y1, d1 = _bin(inside, _knots(parameters, bound), axis=1 if inverse else 0)
    width, height = x1 - x0, y1 - y0
    slope = height / width
    theta = _root((inside - y0) / height, slope, d0, d1) if inverse else (inside - x0) / width
    product = theta * (1 - theta)
    bend = (d0 + d1 - 2 * slope) * product
    bottom = slope + bend
    # Equation 5; d1 theta^2 + 2 slope product + d0 (1 - theta)^2 is the same as this difference.
    log_slope = ((slope / bottom).square() * (torch.lerp(d0, d1, theta) - bend)).log()
    if inverse:
        return torch.addcmul(x0 + outside, theta, width), -log_slope
    share = torch.addcmul(slope * theta, d0 - slope, product) / bottom  # equation 4
    return torch.addcmul(y0 + outside, share, height), log_slope


def _check(x: Tensor, parameters: Tensor, bound: float) -> None:
    bins, rest = divmod(parameters.shape[-1] + 1, 3)
    if parameters.shape[:-1] != x.shape or rest or bins < 1:
        wanted = ", ".join(map(str, (*x.shape, "3 K - 1")))
        raise ValueError(f"parameters must have shape ({wanted}); got {tuple(parameters.shape)}")
    if not bound > 0:
        raise ValueError(f"bound must be above 0; got {bound}")


def _knots(parameters: Tensor, bound: float) -> Tensor:
    """Place, value and slope at the K + 1 knots, shape (K + 1, 3, ...)."""
    bins = (parameters.shape[-1] + 1) // 3
    parameters = parameters.movedim(-1, 0)  # torch is five times as fast along the first dimension
    sizes = parameters[: 2 * bins].unflatten(0, (2, bins)).transpose(0, 1).softmax(0)
    even = torch.linspace(-bound, bound, bins + 1, dtype=sizes.dtype, device=sizes.device)
    even = even.view(-1, *[1] * (sizes.ndim - 1))
    places = LEAST * even[1:-1] + (1 - LEAST) * (2 * bound * sizes[:-1].cumsum(0) - bound)
    slopes = LEAST + (1 - LEAST) * softplus(parameters[2 * bins :], beta=math.log(2))
    inner = torch.cat([places, slopes.unsqueeze(1)], dim=1)
    ends = inner.new_ones(2, 3, *inner.shape[2:])
    ends[0, :2], ends[1, :2] = -bound, bound
    return torch.cat([ends[:1], inner, ends[1:]])


def _bin(x: Tensor, knots: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Place, value and slope at the left end of x's bin along the axis, then at the right end."""
    left = (knots[1:-1, axis] <= x).sum(0)
    index = torch.stack([left, left + 1]).unsqueeze(1).expand(2, 3, *x.shape)
    return knots.gather(0, index).flatten(0, 1).unbind()


def _root(share: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Where in its bin, in [0, 1], the spline has risen by this share of the bin's height.

    The root of equations 6 to 8, whose discriminant is written as a sum of squares and whose
    denominator as a sum of terms of one sign, so that neither is lost to rounding.
    """
    lean = d0 * (1 - share) - d1 * share
    product = 4 * slope.square() * share * (1 - share)
    longer = (lean.square() + product).sqrt() + lean.abs()
    double = 2 * slope * share
    return double / (double + torch.where(lean > 0, longer, product / longer))
