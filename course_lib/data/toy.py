"""Points in the plane: six shapes, three of them with an exact density.

Each shape is a function shape(n, *, generator=None, seed=0) -> (n, 2) float32. It draws from
`generator` if there is one, else from a fresh one with `seed`. All shapes lie within about six
units of the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = [
    "TOYS",
    "Toy",
    "checkerboard",
    "checkerboard_log_prob",
    "eight_gaussians",
    "eight_gaussians_labels",
    "eight_gaussians_log_prob",
    "eight_gaussians_parameters",
    "pinwheel",
    "pinwheel_log_prob",
    "s_curve",
    "spirals",
    "toy",
    "two_moons",
]


def eight_gaussians_parameters(
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means (8, 2), covariances (8, 2, 2) and weights (8,) of `eight_gaussians`."""
    angles = torch.arange(8, dtype=dtype) * (math.pi / 4)
    means = 5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    covs = 0.1 * torch.eye(2, dtype=dtype).repeat(8, 1, 1)
    return means, covs, torch.full((8,), 1 / 8, dtype=dtype)


def eight_gaussians(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw from eight Gaussians of variance 0.1 on a circle of radius 5; entropy 2.6147 nats."""
    generator = _generator(generator, seed)
    means, _, _ = eight_gaussians_parameters()
    noise = torch.randn(n, 2, generator=generator)
    return means[torch.randint(8, (n,), generator=generator)] + math.sqrt(0.1) * noise


def eight_gaussians_log_prob(x: Tensor) -> Tensor:
    """Log-density of `eight_gaussians`, (..., 2) -> (...), in nats."""
    means, _, _ = eight_gaussians_parameters(x.dtype)
    squares = (x[..., None, :] - means.to(x.device)).square().sum(-1)
    return (-squares / 0.2).logsumexp(-1) - math.log(8 * 2 * math.pi * 0.1)


def eight_gaussians_labels(x: Tensor) -> Tensor:
    """The number, 0 to 7, of the nearest of the Gaussians, anticlockwise; (N, 2) -> (N,) int64."""
    means, _, _ = eight_gaussians_parameters(x.dtype)
    return torch.cdist(x, means.to(x.device)).argmin(1)


def checkerboard(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw uniformly from the eight dark fields, each 2 x 2, of a 4 x 4 board on [-4, 4]^2."""
    x = torch.rand(n, 2, generator=_generator(generator, seed)) * 8 - 4
    column, row = _field(x).unbind(1)
    # A light field gives its points to the dark one above it (even rows) or below it.
    x[:, 1] += torch.where(row % 2 == 0, 2, -2) * ((column + row) % 2)
    return x


def checkerboard_log_prob(x: Tensor) -> Tensor:
    """Log-density of `checkerboard`, (..., 2) -> (...): -log 32 on it, -inf elsewhere."""
    on_board = ((x >= -4) & (x < 4)).all(-1)
    dark = _field(x).sum(-1) % 2 == 0
    inside = torch.full_like(x[..., 0], -math.log(32))
    return inside.masked_fill(~(on_board & dark), -math.inf)


def _field(x: Tensor) -> Tensor:
    """Number of the row or column, 0 to 3, of a coordinate."""
    return torch.floor(x / 2) + 2


def pinwheel(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw from five Gaussians, long along their radius, that a rotation by norm(x) / 2 swirls.

    Rotation by an angle that depends on the radius alone keeps areas, and so the density.
    """
    generator = _generator(generator, seed)
    x = torch.randn(n, 2, generator=generator) * torch.tensor(_BLADE_STD)
    x[:, 0] += _BLADE_CENTRE
    blade = torch.randint(5, (n,), generator=generator) * (2 * math.pi / 5)
    return _rotate(x, blade + x.norm(dim=1) / 2)


def pinwheel_log_prob(x: Tensor) -> Tensor:
    """Log-density of `pinwheel`, (..., 2) -> (...), in nats."""
    blades = torch.arange(5, dtype=x.dtype, device=x.device) * (2 * math.pi / 5)
    angle = blades + x.norm(dim=-1, keepdim=True) / 2
    radial, across = _rotate(x[..., None, :], -angle).unbind(-1)
    exponent = ((radial - _BLADE_CENTRE) / _BLADE_STD[0]) ** 2 + (across / _BLADE_STD[1]) ** 2
    return (-exponent / 2).logsumexp(-1) - math.log(5 * 2 * math.pi * math.prod(_BLADE_STD))


_BLADE_CENTRE, _BLADE_STD = 2.0, (0.6, 0.2)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate points (..., 2) by angles (...)."""
    a, b = x.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)


def two_moons(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw from two interleaved half circles of radius 2 with noise of deviation 0.1."""
    generator = _generator(generator, seed)
    angle = torch.rand(n, generator=generator) * math.pi
    side = 1 - 2 * torch.randint(2, (n,), generator=generator)  # the lower moon is the upper turned
    upper = torch.stack([2 * angle.cos() - 1, 2 * angle.sin() - 0.5], dim=1)
    return side[:, None] * upper + 0.1 * torch.randn(n, 2, generator=generator)


def spirals(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw from two spiral arms of one and a half turns, radius 0 to 4, noise of deviation 0.1."""
    generator = _generator(generator, seed)
    radius = 4 * torch.rand(n, generator=generator).sqrt()  # roughly even along the arm
    side = 1 - 2 * torch.randint(2, (n,), generator=generator)
    angle = radius * (3 * math.pi / 4)
    arm = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return side[:, None] * arm + 0.1 * torch.randn(n, 2, generator=generator)


def s_curve(n: int, *, generator: Generator | None = None, seed: int = 0) -> Tensor:
    """Draw from an S made of two three-quarter circles of radius 1.5, noise of deviation 0.1."""
    generator = _generator(generator, seed)
    angle = 3 * math.pi * (torch.rand(n, generator=generator) - 0.5)
    curve = 1.5 * torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], dim=1)
    return curve + 0.1 * torch.randn(n, 2, generator=generator)


def _generator(generator: Generator | None, seed: int) -> Generator:
    return generator if generator is not None else Generator().manual_seed(seed)


@dataclass(frozen=True)
class Toy:
    """A shape: `sample(n, *, generator=None, seed=0)` and, where there is one, its log-density.

    A shape with classes says how many, and to which a point belongs.
    """

    sample: Callable[..., Tensor]
    log_prob: Callable[[Tensor], Tensor] | None = None
    classes: int = 0
    labels: Callable[[Tensor], Tensor] | None = None


TOYS = {
    "eight_gaussians": Toy(eight_gaussians, eight_gaussians_log_prob, 8, eight_gaussians_labels),
    "checkerboard": Toy(checkerboard, checkerboard_log_prob),
    "pinwheel": Toy(pinwheel, pinwheel_log_prob),
    "two_moons": Toy(two_moons),
    "spirals": Toy(spirals),
    "s_curve": Toy(s_curve),
}


def toy(name: str) -> Toy:
    """Look a shape up by its name.

    Raises:
        ValueError: If there is none of that name; the message lists those there are.
    """
    if name not in TOYS:
        raise ValueError(f"name must be one of {', '.join(TOYS)}; got {name!r}")
    return TOYS[name]
