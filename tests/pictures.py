"""Pictures of which the attributes are known, and digits of every kind without a download."""

import torch
from torch.nn.functional import interpolate

from course_lib.data import digits, normalised, varied


def grid(n):
    """x to the right and y upwards, both from the middle of n x n pixels, float64."""
    at = torch.arange(n).double() - (n - 1) / 2
    return at, -at[:, None]


def box(width, height, n=40, rows=0, columns=0):
    """A box of ink on whole pixels, moved down and to the right; (1, 1, n, n) float64."""
    image = torch.full((1, 1, n, n), -1.0, dtype=torch.float64)
    top, left = (n - height) // 2 + rows, (n - width) // 2 + columns
    image[..., top : top + height, left : left + width] = 1
    return image


def ellipse(width=0.5, slant=0.0, size=0.5, n=200):
    """A smooth ellipse. Shear turns a centred circle x' = width x + slant y, y' = y."""
    x, y = grid(n)
    u, half = (x - slant * y) / width, size * n / 2
    return torch.sigmoid(half - torch.hypot(u, y)).mul(2).sub(1)[None, None]


def ring(radius, stroke, n=200):
    """A circle drawn with a stroke, its edges smooth."""
    x, y = grid(n)
    ink = torch.sigmoid(stroke / 2 - (torch.hypot(x, y) - radius).abs())
    return ink.mul(2).sub(1)[None, None]


def handwriting(split="test"):
    """Digits of scikit-learn at 32x32, bold and thin ones, in many sizes and slants; labels."""
    images, labels = digits(split)
    large = normalised(interpolate(images, size=112, mode="bicubic").clamp(-1, 1), 112, 80)
    strokes = [((large - level) * 8).clamp(-1, 1) for level in (0.0, 0.8)]
    strokes = [interpolate(each, size=28, mode="area") for each in strokes]
    images, labels = torch.cat(strokes), labels.repeat(2)
    return varied(images, torch.Generator().manual_seed(0)), labels
