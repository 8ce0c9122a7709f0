"""Meshes of voxels: closed, outward, of the right volume, and readable."""

import numpy as np
import pytest
import torch

from course_lib.applications.mesh import (
    Mesh,
    fill_diagonals,
    largest_component,
    mesh_volume,
    voxel_mesh,
    with_base,
    write_obj,
    write_stl,
)


def solid(*cells, shape=(4, 4, 4)):
    voxels = torch.zeros(shape, dtype=torch.bool)
    for cell in cells:
        voxels[cell] = True
    return voxels


def random_solid(seed=0, shape=(5, 6, 7)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def directed_edges(mesh):
    """How often each edge is run through, in each direction."""
    a = torch.cat([mesh.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    return torch.zeros(2 * [len(mesh.vertices)], dtype=torch.int64).index_put_(
        (a[:, 0], a[:, 1]), torch.tensor(1), accumulate=True
    )


def test_one_cube():
    mesh = voxel_mesh(solid((1, 2, 3)), size=10.0)
    assert (len(mesh.vertices), len(mesh.triangles)) == (8, 12)
    assert mesh.vertices.min() == 0
    assert mesh.vertices.max() == 10
    assert mesh_volume(mesh) == pytest.approx(1000)


def test_normals_point_outwards():
    mesh = voxel_mesh(solid((1, 2, 3)), size=2.0)
    corners = mesh.vertices[mesh.triangles]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outwards = corners.mean(1) - mesh.vertices.mean(0)
    assert ((normals * outwards).sum(1) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_volume_area_and_closed_surface_of_any_solid(seed):
    voxels = random_solid(seed)
    mesh = voxel_mesh(voxels, size=7.0)  # the longest side, so that a voxel is 1 mm
    assert mesh_volume(mesh) == pytest.approx(voxels.sum().item())
    padded = torch.nn.functional.pad(voxels, (1, 1) * 3)
    faces = sum((padded ^ padded.roll(1, axis)).sum().item() for axis in range(3))
    assert len(mesh.triangles) == 2 * faces
    edges = directed_edges(mesh)
    assert torch.equal(edges, edges.T)  # closed
    assert edges.max() == 2  # touching edges, where four triangles meet
    mended = fill_diagonals(voxels)
    edges = directed_edges(voxel_mesh(mended, size=7.0))
    assert torch.equal(edges, edges.T)
    assert edges.max() == 1
    assert (mended | ~voxels).all()


def test_touching_edges():
    diagonal = solid((0, 0, 0), (0, 1, 1))
    assert directed_edges(voxel_mesh(diagonal)).max() == 2
    assert fill_diagonals(diagonal).sum() == 3
    other = solid((0, 0, 1), (1, 0, 0))
    assert fill_diagonals(other).sum() == 3
    apart = solid((0, 0, 0), (2, 2, 2))
    assert torch.equal(fill_diagonals(apart), apart)


def test_up_and_front():
    """The lowest row is on z = 0, and the front faces -y."""
    voxels = solid(np.s_[0, :, 0], np.s_[0, 3, :], np.s_[:, 3, 0], shape=(2, 4, 6))  # an L, a foot
    v = voxel_mesh(voxels, size=6.0).vertices
    assert v.max(0).values.tolist() == [6, 2, 4]
    top = v[v[:, 2] == 4]
    assert top[:, 0].max() == 1
    assert top[:, 1].max() == 1


def test_stl_is_read_back(tmp_path):
    mesh = voxel_mesh(random_solid(), size=35.0)
    content = write_stl(mesh, tmp_path / "new" / "part.stl").read_bytes()
    assert not content.startswith(b"solid")  # readers would take it for text
    (count,) = np.frombuffer(content, "<u4", 1, 80)
    facets = np.frombuffer(content, [("n", "<f4", (4, 3)), ("a", "<u2")], offset=84)
    assert len(facets) == count == len(mesh.triangles)
    normals, corners = facets["n"][:, 0], facets["n"][:, 1:].astype(float)
    assert np.allclose(corners, mesh.vertices[mesh.triangles].numpy(), atol=1e-4)
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.allclose(normals, crossed / np.linalg.norm(crossed, axis=1, keepdims=True), atol=1e-4)
    volume = np.einsum("ti,ti->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume == pytest.approx(mesh_volume(mesh), rel=1e-5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_obj_is_read_back(tmp_path):
    mesh = voxel_mesh(random_solid(), size=35.0)
    lines = write_obj(mesh, str(tmp_path / "part.obj")).read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line[0] == "v"], float)
    triangles = np.array([line.split()[1:] for line in lines if line[0] == "f"], int) - 1
    assert np.allclose(vertices, mesh.vertices.numpy(), atol=1e-3)
    assert (triangles == mesh.triangles.numpy()).all()


def test_largest_component():
    voxels = solid((0, 0, 0), (0, 0, 1), (0, 1, 1), (3, 3, 3), (1, 2, 2))
    assert torch.equal(largest_component(voxels), solid((0, 0, 0), (0, 0, 1), (0, 1, 1)))


def test_base():
    voxels = solid((4, 3, 5), (4, 4, 5), shape=(10, 8, 10))
    based = with_base(voxels, height=2, margin=1)
    assert based.shape == voxels.shape
    added = (based & ~voxels).nonzero()
    assert added.min(0).values.tolist() == [3, 5, 4]
    assert added.max(0).values.tolist() == [5, 6, 6]
    assert len(added) == 18
    assert torch.equal(largest_component(based), based)
    low = with_base(voxels[:, :5], height=3, margin=20)
    assert low.shape == (10, 8, 10)
    assert low[:, 5:].all()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="none of them is True"):
        voxel_mesh(solid())
    with pytest.raises(TypeError, match="voxels must be bool"):
        voxel_mesh(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match=r"shape \(D, H, W\)"):
        largest_component(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="size must be above 0"):
        voxel_mesh(solid((0, 0, 0)), size=0)
    with pytest.raises(ValueError, match="height must be >= 1"):
        with_base(solid((0, 0, 0)), height=0)
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    for write in (write_stl, write_obj):
        with pytest.raises(ValueError, match="at least one triangle"):
            write(empty, tmp_path / "none")
    assert not list(tmp_path.iterdir())
