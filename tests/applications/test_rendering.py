"""The voxel renderer against chords, silhouettes and permuted axes."""

import math

import pytest
import torch

from course_lib.applications.rendering import optical_depth, render, shade

HALF = math.pi / 2


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(*values):
    return torch.tensor(values, dtype=torch.float64)


def radius(n):
    """Distance of each voxel from the axis, and from the centre, of a cube of n voxels."""
    x = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    return (x[:, None, None] ** 2 + x**2).sqrt().expand(n, n, n), (
        x[:, None, None] ** 2 + x[:, None] ** 2 + x**2
    ).sqrt()


@pytest.mark.parametrize("shape", [(6, 5, 6), (7, 4, 7)])
def test_quarter_turns_are_sums_along_an_axis(shape):
    d = noise(*shape)
    views = optical_depth(d, angles(0, HALF, 2 * HALF, 3 * HALF))[:, 0]
    expected = [d.sum(0), d.sum(2).T, d.sum(0).flip(1), d.sum(2).T.flip(1)]
    assert torch.allclose(views, torch.stack(expected), atol=1e-12)


def test_from_above_is_the_sum_down():
    d = noise(6, 6, 6)
    (view,) = optical_depth(d, angles(0), elevation=HALF)[:, 0]
    # Looking down from the front, what is far away is at the top of the picture.
    assert torch.allclose(view, d.sum(1).flip(0), atol=1e-12)


def test_a_view_of_unequal_sides_is_still_a_sum():
    d = noise(5, 4, 8)
    front, side = optical_depth(d, angles(0, HALF))[:, 0]
    assert torch.allclose(front, d.sum(0), atol=1e-12)
    assert torch.allclose(side.sum(1), d.sum((0, 2)), atol=1e-12)  # 5 voxels on 8 pixels
    assert side.shape == (4, 8)


@pytest.mark.parametrize("azimuth", [0.3, 0.8, 2.0])
def test_no_mass_is_lost_on_the_way(azimuth):
    _, r = radius(20)
    d = torch.exp(-(r**2) / 18)
    for elevation in (0.0, 0.5):
        view = optical_depth(d, angles(azimuth), elevation=elevation, size=(40, 40))
        assert view.sum().item() == pytest.approx(d.sum().item(), rel=5e-4)


def test_a_gaussian_ball_looks_the_same_from_everywhere_and_as_its_integral():
    _, r = radius(24)
    d = torch.exp(-(r**2) / 32)
    views = optical_depth(d, angles(0.0, 0.4, 1.1), elevation=0.3)
    flat = radius(24)[0][:, 0]
    exact = math.sqrt(32 * math.pi) * torch.exp(-(flat**2) / 32)
    assert (views[:, 0] - exact).abs().max() < 0.02 * exact.max()


def test_a_sphere_has_its_chords_and_its_silhouette():
    n, big = 40, 15.0
    flat, r = radius(n)
    d = (big + 0.5 - r).clamp(0, 1)  # the border averaged, so that chords are smooth
    chord = 2 * (big**2 - flat[:, 0] ** 2).clamp(min=0).sqrt()
    for azimuth in (0.0, 0.7):
        view = optical_depth(d, angles(azimuth))[0, 0]
        inner = flat[:, 0] < 0.9 * big
        assert (view - chord)[inner].abs().max() < 0.05 * 2 * big
        area = (view > 4).double().sum().item()  # where the chord is longer than that
        assert area == pytest.approx(math.pi * (big**2 - 2**2), rel=0.03)


def test_the_chord_through_the_corners_of_a_box():
    d = torch.zeros(20, 8, 20, dtype=torch.float64)
    d[5:15, :, 5:15] = 1  # a square column of side 10
    view = optical_depth(d, angles(math.pi / 4), size=(8, 21), step=0.1)[0, 0]
    middle = view[4, 10].item()
    assert middle == pytest.approx(10 * math.sqrt(2), rel=0.04)
    assert view[4].sum().item() == pytest.approx(100, rel=0.02)  # the area of its section


def test_finer_pixels_and_steps_see_the_same():
    _, r = radius(16)
    d = torch.exp(-(r**2) / 12)
    coarse = optical_depth(d, angles(0.5))
    fine = optical_depth(d, angles(0.5), size=(48, 48), scale=3.0, step=0.5)
    assert (fine[..., 1::3, 1::3] - coarse).abs().max() < 0.02 * coarse.max()


def test_beer_and_lambert():
    d = torch.zeros(4, 2, 4, dtype=torch.float64)
    d[:, 0, 1] = math.log(2) / 4  # an optical depth of log 2 lets half of the light pass
    image = render(d, angles(0))
    expected = torch.full((1, 1, 2, 4), -1.0, dtype=torch.float64)
    expected[0, 0, 0, 1] = 0
    assert torch.allclose(image, expected, atol=1e-12)


def test_the_gradient_is_that_of_differences():
    d = noise(3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: render(d, angles(0.7), elevation=0.2), (d,))


def test_a_batch_is_its_views():
    d = noise(5, 5, 5)
    both = render(d, angles(0.2, 1.3))
    assert torch.equal(both, torch.cat([render(d, angles(a)) for a in (0.2, 1.3)]))
    assert render(d.float(), angles(0.2)).dtype == torch.float32


def test_shaded_cubes():
    solid = torch.zeros(9, 9, 9, dtype=torch.bool)
    solid[3:6, 3:6, 3:6] = True
    lit = shade(solid, angles(0, HALF), light=(0.0, 0.0, -1.0))
    assert lit.shape == (2, 2, 9, 9)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = 1
    assert torch.equal(lit[:, 1], expected.expand(2, 9, 9))
    assert (lit[:, 0][lit[:, 1] == 0] == 0).all()
    behind = shade(solid, angles(0), light=(0.0, 0.0, 1.0))
    assert (lit[0, 0, 4, 4] / behind[0, 0, 4, 4]).item() == pytest.approx(1 / 0.35)
    assert shade(solid, angles(0.3), elevation=0.4, scale=2.0).shape == (1, 2, 18, 18)


def test_bad_input_is_named():
    d, front = noise(3, 3, 3), angles(0)
    with pytest.raises(ValueError, match=r"\(D, H, W\)"):
        render(d[0], front)
    with pytest.raises(TypeError, match="density must be floating point"):
        render(torch.ones(3, 3, 3, dtype=torch.int64), front)
    with pytest.raises(ValueError, match="azimuth must be angles in radians"):
        render(d, torch.tensor(0.0))
    with pytest.raises(ValueError, match="scale and step must be above 0"):
        render(d, front, scale=0)
    with pytest.raises(TypeError, match="voxels must be bool"):
        shade(d, front)
