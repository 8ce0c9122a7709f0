"""Measured attributes against shapes of which they are known, and the limits against MNIST."""

import math
import os

import pytest
import torch
from pictures import box, ellipse, grid, handwriting, ring
from torch.nn.functional import pad

from course_lib.data import ATTRIBUTES, digits, levels, measure, mnist, normalised, varied
from course_lib.data.attributes import LIMITS


def measured(image):
    return {name: value.item() for name, value in measure(image)._asdict().items()}


@pytest.mark.parametrize(("width", "height"), [(3, 20), (20, 3), (8, 12), (15, 15), (1, 9)])
def test_a_box_has_the_values_of_its_sides(width, height):
    """Without approximation: the gradient is one along the sides, and twice half a diagonal less
    than two at the two corners where both of its parts meet in one pixel."""
    found = measured(box(width, height))
    longer, perimeter = max(width, height), 2 * (width + height) - (2 - math.sqrt(2))
    assert found["weight"] == pytest.approx(2 * width * height / perimeter / longer, rel=1e-12)
    assert found["slant"] == pytest.approx(0, abs=1e-12)
    assert found["width"] == pytest.approx(math.sqrt((width**2 - 1) / (height**2 - 1)), rel=1e-12)
    assert found["size"] == longer / 40


@pytest.mark.parametrize("stroke", [8, 12, 20])
def test_the_weight_is_the_width_of_the_stroke(stroke):
    """Of a ring, which has no ends: the width is exactly 2 area / perimeter."""
    found = measured(ring(60, stroke))
    assert found["weight"] == pytest.approx(stroke / (120 + stroke), rel=0.03)


def test_a_long_bar_is_as_heavy_as_it_is_wide():
    """But for its ends, which add to the perimeter."""
    assert measured(box(4, 180, 200))["weight"] * 180 == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize("slant", [-0.6, -0.1, 0.0, 0.3, 1.0])
def test_a_shear_is_the_slant_and_leaves_the_width(slant):
    for width in (0.2, 0.7):
        found = measured(ellipse(width, slant))
        assert found["slant"] == pytest.approx(slant, abs=2e-3)
        assert found["width"] == pytest.approx(width, rel=5e-3)


def sheared(image, step):
    """Each row moved by a whole number of pixels, rising with its height."""
    n = image.shape[-1]
    rows = [image[..., i, :].roll(step * (n // 2 - i), -1) for i in range(n)]
    return torch.stack(rows, -2)


@pytest.mark.parametrize("step", [-1, 1, 2])
def test_a_shear_by_whole_pixels_adds_to_the_slant_exactly(step):
    """Of any shape, here a hook; and its width stays."""
    hook = torch.maximum(box(4, 18, 120), box(14, 3, 120, rows=-8, columns=6))
    before, after = measured(hook), measured(sheared(hook, step))
    assert after["slant"] - before["slant"] == pytest.approx(step, abs=1e-12)
    assert after["width"] == pytest.approx(before["width"], rel=1e-12)


def test_a_mirror_turns_the_slant_and_nothing_else():
    image = ellipse(0.3, 0.4)
    plain, turned = measured(image), measured(image.flip(-1))
    assert turned["slant"] == pytest.approx(-plain["slant"], rel=1e-9)
    assert turned["width"] == pytest.approx(plain["width"], rel=1e-9)
    assert turned["size"] == pytest.approx(plain["size"], rel=1e-12)


def test_place_does_not_matter():
    first, second = measured(box(5, 12)), measured(box(5, 12, rows=9, columns=-7))
    assert first == pytest.approx(second, rel=1e-9)


def test_twice_as_many_pixels_leave_all_but_rounding():
    coarse, fine = measured(ellipse(0.4, 0.2, n=100)), measured(ellipse(0.4, 0.2, n=400))
    assert coarse == pytest.approx(fine, rel=0.03)


def test_part_of_a_pixel_counts_in_part_and_faint_traces_do_not_count():
    """Ink is stretched: a tenth and less is none, nine tenths and more all."""
    image = box(5, 10)
    image[..., 25, 17:22] = 0.0  # one more row with half of the ink
    assert measured(image)["size"] == pytest.approx(10.5 / 40)
    traces = box(5, 10)
    traces[traces < 0] = -0.81
    assert measured(traces) == measured(box(5, 10))


def test_the_longer_side_of_images_that_are_no_squares():
    image = box(6, 10, 40)[..., 5:35, :]  # 30 rows, 40 columns
    assert measured(image)["size"] == 10 / 40


def test_an_image_without_ink_has_no_attributes_and_nothing_clear():
    blank = torch.full((2, 1, 32, 32), -1.0)
    assert all(v.isnan().all() for v in (measure(blank).slant, measure(blank).width))
    assert levels(blank, torch.tensor([3, 7]))[:, :3].eq(0).all()


@pytest.mark.parametrize("label", range(10))
def test_levels_say_on_which_side_of_its_limits_an_attribute_is(label):
    labels = torch.tensor([label])
    low, high = LIMITS[label].double().unbind(1)
    inside = (low + high) / 2
    for i, name in enumerate(ATTRIBUTES[1:], start=1):
        for level, value in ((-1, low[i] - 0.02), (0, inside[i]), (1, high[i] + 0.02)):
            wanted = inside.clone()
            wanted[i] = value
            image = ellipse(wanted[2].item(), wanted[1].item(), wanted[3].item() * 0.99)
            assert levels(image, labels)[0, i] == level, name


def test_levels_of_the_stroke():
    labels = torch.zeros(3, dtype=torch.int64)
    rings = torch.cat([ring(60, stroke) for stroke in (10, 18, 30)])
    assert levels(rings, labels)[:, 0].tolist() == [-1, 0, 1]


def test_a_wide_one_is_a_narrow_zero():
    image = ellipse(0.4)
    assert levels(image, torch.tensor([1]))[0, 2] == 1
    assert levels(image, torch.tensor([0]))[0, 2] == -1


@pytest.mark.skipif("COURSE_DATA_DIR" not in os.environ, reason="needs the training images")
def test_the_limits_are_three_tenths_and_seven_tenths_of_varied_digits():
    """Of the first images, so up to the error of so many."""
    images, labels = mnist("train")
    images, labels, generator = images[:20000], labels[:20000], torch.Generator().manual_seed(0)
    found = [torch.stack(measure(varied(x, generator)), 1) for x in images.split(2000)]
    values, at = torch.cat(found), torch.tensor([0.3, 0.7])
    limits = torch.stack([torch.quantile(values[labels == k], at, 0).mT for k in range(10)])
    error = (limits - LIMITS).abs().amax((0, 2))
    assert (error < torch.tensor([0.006, 0.06, 0.025, 0.012])).all()


def test_varied_has_the_stated_sizes_widths_and_slants():
    """Uniform in the logarithm of the size, in that of the width, and in the slant."""
    one = ellipse(0.5, 0.1, 0.4, n=64).float().expand(1500, -1, -1, -1)
    found = measure(varied(one, torch.Generator().manual_seed(0), size=64))
    plain = measured(one[:1])
    # height' = height scale / aspect, and width' = width aspect^2, aspect = exp(+-.15)
    aspect = (found.width / plain["width"]).log() / 2
    scale = (found.size / plain["size"]).log() + aspect
    shear = found.slant - plain["slant"]
    # The slant was there before: it is stretched with the width.
    shear = shear - plain["slant"] * torch.expm1(2 * aspect)
    for value, low, high in (
        (aspect, -0.15, 0.15),
        (scale, math.log(0.6), math.log(1.2)),
        (shear, -0.3, 0.3),
    ):
        assert low - 0.03 < value.min()
        assert value.max() < high + 0.03
        assert value.mean() == pytest.approx((low + high) / 2, abs=0.1 * (high - low))
        assert value.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.06)
    independent = torch.corrcoef(torch.stack([aspect, scale, shear])).triu(1)
    assert independent.abs().max() < 0.1


def test_varied_without_variation_is_a_frame():
    images, _ = digits("test")
    same = varied(images.double(), size=10, scales=(1.0, 1.0), stretch=0.0, shear=0.0)
    torch.testing.assert_close(same, pad(images.double(), (1, 1, 1, 1), value=-1.0))


def test_varied_is_seeded_and_stays_in_range():
    images, _ = digits("test")
    state = torch.get_rng_state()
    one, two, other = (varied(images, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (len(images), 1, 32, 32)
    assert one.min() >= -1
    assert one.max() <= 1


def test_normalised_digits_fill_the_box_around_their_centre_of_mass():
    """As large as a box of 20 pixels, wherever and however large they were."""
    places = ((0.3, 0, 0), (0.5, 12, -20), (0.7, -9, 4))
    for size, rows, columns in places:
        image = ellipse(0.5, 0.2, size, n=128).roll((rows, columns), (2, 3))
        found = normalised(image)
        assert found.shape == (1, 1, 28, 28)
        assert measured(found)["size"] * 28 == pytest.approx(20, abs=0.3)
        u, (x, y) = (found[0, 0] + 1) / 2, grid(28)
        assert (u * x).sum() / u.sum() == pytest.approx(0, abs=0.02)
        assert (u * y).sum() / u.sum() == pytest.approx(0, abs=0.02)
        assert measured(found)["slant"] == pytest.approx(0.2, abs=0.02)


def test_normalised_undoes_the_sizes():
    images = handwriting()[0][:50]
    small = varied(images, torch.Generator().manual_seed(1), scales=(0.6, 0.6), stretch=0, shear=0)
    # As far as the lost pixels allow.
    error = (normalised(small) - normalised(images)).square().mean().sqrt()
    assert error < 0.25
    assert error < 0.6 * (small[..., 2:-2, 2:-2] - normalised(images)).square().mean().sqrt()


def test_a_blank_image_stays_one():
    blank = torch.full((2, 1, 32, 32), -1.0)
    assert torch.equal(normalised(blank), torch.full((2, 1, 28, 28), -1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(torch.zeros(3, 8, 8)), r"images must have shape \(B, 1, H, W\); got"),
        (lambda: measure(torch.zeros(3, 3, 8, 8)), r"got \(3, 3, 8, 8\)"),
        (lambda: normalised(torch.zeros(3, 3, 8, 8)), r"got \(3, 3, 8, 8\)"),
        (
            lambda: levels(torch.zeros(3, 1, 8, 8), torch.zeros(2).long()),
            r"labels must have shape \(3,\); got \(2,\)",
        ),
        (
            lambda: levels(torch.zeros(2, 1, 8, 8), torch.tensor([4, -1])),
            r"labels must be 0 to 9; got \[-1, 4\]",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
