"""Voxels to print: the surface of a solid as triangles, in an STL or OBJ file."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.training.atomic import write_atomic

__all__ = [
    "Mesh",
    "fill_diagonals",
    "largest_component",
    "mesh_volume",
    "voxel_mesh",
    "with_base",
    "write_obj",
    "write_stl",
]


class Mesh(NamedTuple):
    """Triangles with their corners anticlockwise, seen from outside."""

    vertices: Tensor
    """Points (x, y, z) in millimetres, z up, float64, shape (V, 3)."""
    triangles: Tensor
    """Three rows of ``vertices`` each, int64, shape (T, 3)."""


def voxel_mesh(voxels: Tensor, size: float = 60.0) -> Mesh:
    """The surface of a solid of cubes: two triangles for each face that is exposed.

    The surface is closed: each edge is run through in one direction as often as in the other. It
    is run through once each unless two cubes touch along an edge alone, where four triangles
    meet; :func:`fill_diagonals` mends that.

    Args:
        voxels: where the solid is, bool, shape (D, H, W), H downwards.
        size: longest side of the solid, in millimetres.

    Returns:
        The mesh, standing on z = 0; its front, d = 0, faces -y.

    Raises:
        TypeError: if the voxels are not bool.
        ValueError: if the shape does not fit, there is no solid, or ``size`` is not above 0.
    """
    _check(voxels)
    if not size > 0:
        raise ValueError(f"size must be above 0 millimetres; got {size}")
    solid = F.pad(voxels.permute(2, 0, 1).flip(2), (1, 1) * 3)  # (x, y, z): W, D, H upwards
    quads = torch.cat([_faces(solid, axis, side) for axis in range(3) for side in (-1, 1)])
    vertices, index = quads.reshape(-1, 3).unique(dim=0, return_inverse=True)
    quads = index.reshape(-1, 4)
    triangles = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices = vertices - vertices.min(0).values
    return Mesh(vertices.double() * (size / vertices.max()), triangles)


def mesh_volume(mesh: Mesh) -> float:
    """Volume inside of a closed mesh, in cubic millimetres, by the divergence theorem.

    Triangles in a plane through the origin add nothing, so a hole there is not noticed.
    """
    a, b, c = mesh.vertices[mesh.triangles].unbind(1)
    return (torch.linalg.cross(b, c) * a).sum().item() / 6


def write_stl(mesh: Mesh, path: Path | str) -> Path:
    """Write a binary STL file, which slicers of 3-D printers read as millimetres.

    Args:
        mesh: the mesh.
        path: the file; it is there in full or not at all.

    Returns:
        The path.

    Raises:
        ValueError: if the mesh has no triangle.
        OSError: if the file cannot be written.
    """
    import numpy as np

    _check_mesh(mesh)
    corners = mesh.vertices[mesh.triangles]  # (T, 3, 3)
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facets = np.zeros(len(corners), [("numbers", "<f4", (4, 3)), ("attribute", "<u2")])
    normals = F.normalize(normals, dim=1)[:, None]
    facets["numbers"] = torch.cat([normals, corners], dim=1).numpy()
    head = b"course_lib, millimetres".ljust(80) + np.array(len(corners), "<u4").tobytes()
    write_atomic(Path(path), head + facets.tobytes())
    return Path(path)


def write_obj(mesh: Mesh, path: Path | str) -> Path:
    """Write an OBJ file, text, in which triangles share their corners.

    Args:
        mesh: the mesh.
        path: the file; it is there in full or not at all.

    Returns:
        The path.

    Raises:
        ValueError: if the mesh has no triangle.
        OSError: if the file cannot be written.
    """
    _check_mesh(mesh)
    lines = [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.triangles + 1).tolist()]  # OBJ counts from 1
    write_atomic(Path(path), ("\n".join(lines) + "\n").encode())
    return Path(path)


def largest_component(voxels: Tensor) -> Tensor:
    """The largest part of a solid that hangs together by faces, bool, shape (D, H, W).

    Raises:
        TypeError: if the voxels are not bool.
        ValueError: if the shape does not fit, or there is no solid.
    """
    from scipy.ndimage import label

    _check(voxels)
    parts = torch.from_numpy(label(voxels.cpu().numpy())[0]).long()
    return (parts == parts.flatten().bincount()[1:].argmax() + 1).to(voxels.device)


def fill_diagonals(voxels: Tensor) -> Tensor:
    """The solid with cubes added until no two touch along an edge alone; bool, (D, H, W).

    Raises:
        TypeError: if the voxels are not bool.
        ValueError: if the shape does not fit, or there is no solid.
    """
    _check(voxels)
    solid, before = voxels.clone(), None
    while before is None or not torch.equal(solid, before):
        before = solid.clone()
        for axis in range(3):
            v = solid.movedim(axis, 0)  # a view: what is written below is written to `solid`
            for left, right in ((slice(-1), slice(1, None)), (slice(1, None), slice(-1))):
                a, b = v[:, :-1, left], v[:, 1:, right]
                c, d = v[:, :-1, right], v[:, 1:, left]
                c |= a & b & ~c & ~d
    return solid


def with_base(voxels: Tensor, height: int = 2, margin: int = 2) -> Tensor:
    """The solid on a plate, directly under it and ``margin`` voxels wider; bool, (D, H', W).

    Args:
        voxels: bool, shape (D, H, W), H downwards.
        height: of the plate, in voxels, at least 1.
        margin: how far the plate reaches out, within D and W.

    Returns:
        H' = H, or more where there is no room for the plate.

    Raises:
        TypeError: if the voxels are not bool.
        ValueError: if the shape does not fit, there is no solid, or an option is out of range.
    """
    _check(voxels)
    if height < 1 or margin < 0:
        raise ValueError(f"height must be >= 1 and margin >= 0; got {height} and {margin}")
    spans = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        used = voxels.any(dim=axes[1]).any(dim=axes[0]).nonzero()
        spans.append((int(used.min()), int(used.max())))
    (front, back), (_, bottom), (left, right) = spans
    base = F.pad(voxels, (0, 0, 0, max(0, bottom + 1 + height - voxels.shape[1])))
    plate = (
        slice(max(0, front - margin), back + margin + 1),
        slice(bottom + 1, bottom + 1 + height),
        slice(max(0, left - margin), right + margin + 1),
    )
    base[plate] = True
    return base


def _faces(solid: Tensor, axis: int, side: int) -> Tensor:
    """The exposed faces on one side of the voxels, corners anticlockwise; shape (Q, 4, 3)."""
    exposed = (solid & ~solid.roll(-side, axis)).nonzero()
    first, second = (axis + 1) % 3, (axis + 2) % 3  # first x second = axis
    if side < 0:
        first, second = second, first
    unit = torch.eye(3, dtype=torch.int64, device=solid.device)
    square = torch.stack([0 * unit[0], unit[first], unit[first] + unit[second], unit[second]])
    return exposed[:, None] + square + (unit[axis] if side > 0 else 0)


def _check(voxels: Tensor) -> None:
    if voxels.dtype != torch.bool:
        raise TypeError(f"voxels must be bool; got {voxels.dtype}: compare with a threshold")
    if voxels.ndim != 3:
        raise ValueError(f"voxels must have shape (D, H, W); got {tuple(voxels.shape)}")
    if not bool(voxels.any()):
        raise ValueError("voxels must hold a solid; none of them is True: lower the threshold?")


def _check_mesh(mesh: Mesh) -> None:
    if len(mesh.triangles) == 0:
        raise ValueError("mesh must have at least one triangle; got none")
