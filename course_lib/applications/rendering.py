"""Pictures of a voxel grid: orthographic views from any side, differentiable in the grid.

Axes of a grid of shape (D, H, W): W runs to the viewer's right, H down, and D away from the viewer
who stands in front, at azimuth 0. At azimuth pi / 2 the viewer stands at the right-hand side.
Lengths are in voxels, and the centre of the grid is the origin.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["optical_depth", "render", "shade"]

STEP = 0.25  # distance of the points at which `shade` looks for a surface, in voxels


def optical_depth(
    density: Tensor,
    azimuth: Tensor,
    *,
    elevation: float = 0.0,
    size: tuple[int, int] | None = None,
    scale: float = 1.0,
    step: float = 1.0,
) -> Tensor:
    """The integral of the density along the ray of each pixel.

    Trilinear interpolation, summed at points ``step`` apart. From the front, the back and, if
    D = W, both sides, this is the plain sum along an axis, with the default options.

    Args:
        density: matter per voxel length, not negative, shape (D, H, W); 0 outside of the grid.
        azimuth: angles in radians at which the viewer stands, shape (B,).
        elevation: angle in radians by which the viewer looks down.
        size: rows and columns of the picture; (H, max(D, W)) by default.
        scale: pixels a voxel.
        step: distance of the points on a ray, in voxels.

    Returns:
        Shape (B, 1, rows, columns).

    Raises:
        TypeError: if the density is not floating point.
        ValueError: if a shape does not fit, or scale or step is not above 0.
    """
    _check(density, azimuth, scale, step)
    D, H, W = density.shape
    depth = math.ceil(math.hypot(D, W) if elevation == 0 else math.hypot(D, H, W)) + 1
    depth += (depth - D) % 2  # as odd or even as D: the front view's points are voxel centres
    size = size or (H, max(D, W))
    points = _rays(azimuth.to(density), elevation, size, scale, depth, step)
    return step * _values(density, points).sum(1, keepdim=True)


def render(density: Tensor, azimuth: Tensor, **options: object) -> Tensor:
    """The picture of glowing matter: 1 - exp(-optical depth), as an image in [-1, 1].

    Beer and Lambert's law: a share exp(-tau) of the light passes matter of optical depth tau. It
    is the volume rendering of NeRF (Mildenhall et al., 2020, eq. 3) for matter of one colour.

    Args:
        density: shape (D, H, W).
        azimuth: shape (B,).
        options: those of :func:`optical_depth`.

    Returns:
        Images, shape (B, 1, rows, columns); -1 where there is nothing.

    Raises:
        TypeError: as :func:`optical_depth` does.
        ValueError: likewise.
    """
    return 1 - 2 * torch.exp(-optical_depth(density, azimuth, **options))  # type: ignore[arg-type]


@torch.no_grad()
def shade(
    voxels: Tensor,
    azimuth: Tensor,
    *,
    elevation: float = 0.0,
    size: tuple[int, int] | None = None,
    scale: float = 1.0,
    light: tuple[float, float, float] = (-0.4, -0.7, -0.6),
) -> Tensor:
    """Shaded pictures of cubes, to look at: Lambert's law, darker in corners.

    Args:
        voxels: where the solid is, bool, shape (D, H, W).
        azimuth: angles in radians, shape (B,).
        elevation: angle in radians by which the viewer looks down.
        size: rows and columns of the picture; (H, max(D, W)) by default, times ``scale``.
        scale: pixels a voxel.
        light: where the light comes from, as the viewer sees it: right, down, away.

    Returns:
        Brightness and coverage, both in [0, 1], shape (B, 2, rows, columns).

    Raises:
        TypeError: if the voxels are not bool.
        ValueError: if a shape does not fit.
    """
    if voxels.dtype != torch.bool:
        raise TypeError(f"voxels must be bool; got {voxels.dtype}: compare with a threshold")
    _check(voxels, azimuth, scale, 1.0)
    D, H, W = voxels.shape
    size = size or (round(scale * H), round(scale * max(D, W)))
    solid = voxels.to(azimuth)
    crowd = F.avg_pool3d(solid[None, None], 7, 1, 3)[0, 0]
    middle = solid.new_tensor(solid.shape) / 2
    corners = (voxels.nonzero() + 0.5 - middle).norm(dim=1)
    depth = 2 * (corners.max().item() + 1) if len(corners) else 1.0  # no ray needs more
    pictures = []
    for angle in azimuth.split(1):
        points = _rays(angle, elevation, size, scale, depth, STEP)[0]
        pictures.append(_shaded(solid, crowd, points, angle, elevation, light))
    return torch.stack(pictures)


def _rays(
    azimuth: Tensor,
    elevation: float,
    size: tuple[int, int],
    scale: float,
    depth: float,
    step: float,
) -> Tensor:
    """Points on the ray of each pixel, nearest first; (B, S, rows, columns, 3) as (x, y, z)."""
    right, down, forward = _camera(azimuth, elevation)
    s = _centred(max(1, round(depth / step)), azimuth) * step
    v, u = (_centred(n, azimuth) / scale for n in size)
    across = v[:, None, None] * down[:, None, None] + u[:, None] * right[:, None, None]
    return s[:, None, None, None] * forward[:, None, None, None] + across[:, None]


def _camera(azimuth: Tensor, elevation: float) -> tuple[Tensor, Tensor, Tensor]:
    """The viewer's right, down and forward as (x, y, z), each of shape (B, 3)."""
    sin, cos, zero = azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)
    right = torch.stack([cos, zero, sin], dim=1)
    level = torch.stack([-sin, zero, cos], dim=1)
    plumb = torch.stack([zero, zero + 1, zero], dim=1)
    c, s = math.cos(elevation), math.sin(elevation)
    return right, c * plumb - s * level, c * level + s * plumb


def _centred(n: int, like: Tensor) -> Tensor:
    """n numbers with a distance of 1 and the mean 0."""
    return torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2


def _values(grid: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """The grid at points of shape (B, S, rows, columns, 3); shape (B, S, rows, columns)."""
    size = grid.new_tensor(grid.shape[::-1])  # W, H, D belong to x, y, z
    volume = grid.expand(len(points), 1, *grid.shape)
    return F.grid_sample(volume, 2 * points / size, mode=mode, align_corners=False)[:, 0]


def _shaded(
    solid: Tensor,
    crowd: Tensor,
    points: Tensor,
    azimuth: Tensor,
    elevation: float,
    light: tuple[float, float, float],
) -> Tensor:
    """Brightness and coverage of one picture, from the first point of each ray in the solid."""
    inside = _values(solid, points[None], "nearest")[0] > 0.5
    first = inside.byte().argmax(0)  # byte: argmax of bool is not defined
    hit = points.gather(0, first[None, ..., None].expand(1, *first.shape, 3))[0]
    half = hit.new_tensor(solid.shape[::-1]) / 2
    right, down, forward = (e[0] for e in _camera(azimuth, elevation))
    # The face between the voxel of the point and the one that the ray was in before.
    crossed = (hit + half).floor() != (hit - STEP * forward + half).floor()
    offset = ((hit + half) % 1 - 0.5) * crossed
    axis = offset.abs().argmax(-1, keepdim=True)
    normal = torch.zeros_like(hit).scatter(-1, axis, offset.gather(-1, axis).sign())
    to_light = light[0] * right + light[1] * down + light[2] * forward
    lambert = (normal @ F.normalize(to_light, dim=0)).clamp(min=0)
    open_air = 1 - _values(crowd, (hit + 2 * normal)[None, None])[0, 0]
    coverage = inside.any(0).to(solid)
    return torch.stack([(0.35 + 0.65 * lambert) * open_air.clamp(0, 1), coverage]) * coverage


def _check(grid: Tensor, azimuth: Tensor, scale: float, step: float) -> None:
    if grid.ndim != 3 or 0 in grid.shape:
        raise ValueError(f"a voxel grid must have shape (D, H, W); got {tuple(grid.shape)}")
    if grid.dtype != torch.bool and not grid.is_floating_point():
        raise TypeError(f"density must be floating point; got {grid.dtype}")
    if azimuth.ndim != 1 or not azimuth.is_floating_point():
        raise ValueError(
            f"azimuth must be angles in radians, shape (B,); got {tuple(azimuth.shape)} "
            f"{azimuth.dtype}"
        )
    if not (scale > 0 and step > 0):
        raise ValueError(f"scale and step must be above 0; got {scale} and {step}")
