"""What a digit looks like, in four numbers: stroke weight, slant, width and size.

The numbers are measured from the pixels, in torch alone. The same code writes the captions and
judges the samples, so "does the model do what the prompt says" is a question with an answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

__all__ = ["ATTRIBUTES", "LIMITS", "Attributes", "levels", "measure", "normalised", "varied"]

ATTRIBUTES = ("weight", "slant", "width", "size")
"""The attributes, in the order of every tensor of shape (..., 4)."""

# `varied` MNIST training images with seed 0, see tests/data/test_attributes.py.
LIMITS = torch.tensor(
    [
        [[0.115, 0.148], [0.065, 0.374], [0.726, 0.970], [0.471, 0.625]],
        [[0.109, 0.141], [0.058, 0.399], [0.156, 0.220], [0.445, 0.594]],
        [[0.113, 0.143], [-0.074, 0.273], [0.589, 0.820], [0.466, 0.620]],
        [[0.106, 0.132], [-0.105, 0.214], [0.490, 0.660], [0.463, 0.617]],
        [[0.109, 0.136], [-0.136, 0.239], [0.703, 0.986], [0.447, 0.597]],
        [[0.103, 0.125], [0.020, 0.397], [0.553, 0.746], [0.449, 0.608]],
        [[0.112, 0.143], [-0.132, 0.179], [0.562, 0.807], [0.454, 0.606]],
        [[0.110, 0.136], [-0.140, 0.190], [0.511, 0.712], [0.457, 0.609]],
        [[0.109, 0.137], [0.016, 0.347], [0.475, 0.648], [0.461, 0.618]],
        [[0.107, 0.133], [-0.172, 0.164], [0.524, 0.734], [0.445, 0.595]],
    ]
)
"""For each digit and attribute the values below and above which it is clear, shape (10, 4, 2)."""


class Attributes(NamedTuple):
    """Measurements of digits, each of shape (B,)."""

    weight: Tensor
    """Width of the stroke as a part of the digit's longer side."""
    slant: Tensor
    """Mean step to the right for each step up, the tangent of the angle."""
    width: Tensor
    """Spread in x, the slant undone, as a multiple of the spread in y."""
    size: Tensor
    """The digit's longer side as a part of the image's."""


def measure(images: Tensor) -> Attributes:
    """Measure digits.

    The stroke is 2 area / perimeter wide: a stroke of length L and width w has the area L w and,
    but for its ends, the perimeter 2 L. The perimeter is the integral of the gradient's length,
    which needs no outline. Slant and width come from the second moments: a shear x + s y adds s to
    cov(x, y) / var(y), and leaves what var(x) has beyond cov(x, y)^2 / var(y) as it was.

    Args:
        images: shape (B, 1, H, W) in [-1, 1], ink being bright.

    Returns:
        The four attributes. Those of an image without ink are not a number.

    Raises:
        ValueError: the images have another shape.
    """
    u = _ink(images)
    area, var_x, var_y, cov = _moments(u)
    longer = torch.maximum(*_extent(u))
    framed = pad(u, (1, 1, 1, 1))
    dx = framed[:, 1:, 1:] - framed[:, 1:, :-1]
    dy = framed[:, 1:, 1:] - framed[:, :-1, 1:]
    perimeter = torch.hypot(dx, dy).sum((1, 2))
    residual = var_x - cov**2 / var_y
    return Attributes(
        weight=2 * area / perimeter / longer,
        slant=-cov / var_y,  # y counts downwards
        width=(residual.clamp(min=0) / var_y).sqrt(),
        size=longer / max(u.shape[1:]),
    )


def levels(images: Tensor, labels: Tensor) -> Tensor:
    """Which attributes are clear: 1 for bold, leaning right, wide, large; -1 for the opposites.

    An attribute is clear in the outer three tenths on either side, among varied training images
    (:func:`varied`) of the same digit: a one is narrow beside an eight, but may be a wide one.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        labels: which digits they are, int64 of shape (B,).

    Returns:
        -1, 0 or 1 for each of `ATTRIBUTES`, int64 of shape (B, 4).

    Raises:
        ValueError: shapes do not fit, or a label is no digit.
    """
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({len(images)},); got {tuple(labels.shape)}")
    if not bool(((labels >= 0) & (labels < len(LIMITS))).all()):
        raise ValueError(f"labels must be 0 to 9; got {sorted(set(labels.tolist()))}")
    found = torch.stack(measure(images), dim=1)
    low, high = LIMITS.to(found)[labels].unbind(-1)
    return (found > high).long() - (found < low).long()


def varied(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    size: int = 32,
    scales: tuple[float, float] = (0.6, 1.2),
    stretch: float = 0.15,
    shear: float = 0.3,
) -> Tensor:
    """Digits of many sizes, widths and slants, of MNIST's, which all fill a box of 20 pixels.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        generator: source of the randomness.
        size: side of the new images in pixels.
        scales: smallest and largest factor on the size, which is uniform in its logarithm.
        stretch: largest logarithm of the factor on the width; the height is divided by it.
        shear: largest change of the slant, to either side.

    Returns:
        Shape (B, 1, size, size), in [-1, 1].
    """
    draws = torch.rand(len(images), 3, generator=generator, device=images.device)
    low, high = map(math.log, scales)
    scale = torch.exp(low + (high - low) * draws[:, 0])
    aspect = torch.exp(stretch * (2 * draws[:, 1] - 1))
    s = shear * (2 * draws[:, 2] - 1)
    across, along = scale * aspect, scale / aspect
    # Forth: x' = across x - s along y, y' = along y. The grid asks for the way back.
    rows = [1 / across, s / across, torch.zeros_like(s), 1 / along]
    return _resampled(images, torch.stack(rows, 1).unflatten(1, (2, 2)), size)


def normalised(images: Tensor, size: int = 28, box: float = 20.0) -> Tensor:
    """Digits as MNIST has them: as large as a box of 20 pixels, centre of mass in the middle.

    It undoes the sizes of :func:`varied`, for classifiers that know no other.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        size: side of the new images in pixels.
        box: the digits' longer side in pixels.

    Returns:
        Shape (B, 1, size, size), in [-1, 1].
    """
    u = _ink(images)
    x, y = _grids(u)
    area = u.sum((1, 2)).clamp(min=1e-6)
    centre = torch.stack([(u * x).sum((1, 2)), (u * y).sum((1, 2))], 1) / area[:, None]
    back = torch.maximum(*_extent(u)).clamp(min=1) / box
    return _resampled(images, back[:, None, None] * torch.eye(2).to(u), size, centre)


def _resampled(images: Tensor, back: Tensor, size: int, centre: Tensor | float = 0.0) -> Tensor:
    """What lies at back p + centre, for pixels p counted from the middle."""
    height, width = images.shape[2:]
    units = torch.tensor([2 / width, 2 / height]).to(images)  # of the grid, in each pixel
    shift = torch.as_tensor(centre).to(images).expand(len(images), 2) * units
    theta = torch.cat([back * size / 2 * units[:, None], shift[:, :, None]], dim=2)
    grid = affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    ink = grid_sample(images + 1, grid, align_corners=False)  # beyond the edge is background
    return (ink - 1).clamp(-1, 1)


def _ink(images: Tensor) -> Tensor:
    """Ink in [0, 1], faint traces taken away; (B, 1, H, W) -> (B, H, W)."""
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images must have shape (B, 1, H, W); got {tuple(images.shape)}")
    return (((images[:, 0] + 1) / 2 - 0.1) / 0.8).clamp(0, 1)


def _extent(u: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of the digits in pixels, (B,): rows and columns with ink, edges in part."""
    return u.amax(2).sum(1), u.amax(1).sum(1)


def _grids(u: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels from the middle of the image: x (W,) and y (H, 1)."""
    y, x = (torch.arange(n).to(u) - (n - 1) / 2 for n in u.shape[1:])
    return x, y[:, None]


def _moments(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area, variance of x, variance of y, and covariance of the ink, each (B,)."""
    x, y = _grids(u)
    area = u.sum((1, 2))

    def mean(values: Tensor) -> Tensor:
        return (u * values).sum((1, 2)) / area

    mx, my = mean(x), mean(y)
    return area, mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
