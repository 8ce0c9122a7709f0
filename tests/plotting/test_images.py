"""Grids of images: the right pixel in the right place."""

import numpy as np
import pytest
import torch

from course_lib.plotting import image_frames, image_grid
from course_lib.plotting.images import tile
from course_lib.plotting.style import WIDTH


def numbered(count, channels=1, size=2):
    """Images of one value each: the n-th has the grey level 10 n."""
    levels = torch.arange(count) * 10 / 127.5 - 1
    return levels[:, None, None, None].expand(count, channels, size, size)


def picture(fig):
    return np.asarray(fig.axes[0].images[0].get_array())


def test_tile_places_images_row_by_row():
    grid = tile(numbered(5), columns=3)
    assert grid.shape == (6, 9, 4)
    assert grid.dtype == np.uint8
    for n in range(5):
        row, column = divmod(n, 3)
        block = grid[3 * row : 3 * row + 2, 3 * column : 3 * column + 2]
        assert (block == [10 * n, 10 * n, 10 * n, 255]).all()
    opaque = grid[..., 3] == 255
    assert opaque.sum() == 5 * 4
    assert not opaque[2].any()
    assert not opaque[:, 2].any()
    assert not opaque[3:, 6:].any()  # the place of the sixth image


def test_tile_keeps_the_order_within_an_image():
    image = torch.arange(6.0).reshape(1, 1, 2, 3) / 127.5 - 1
    assert (tile(image, 1, gap=0)[..., 0] == [[0, 1, 2], [3, 4, 5]]).all()


def test_tile_colour_and_range():
    image = torch.tensor([-3.0, 0.0, float("nan")]).reshape(1, 3, 1, 1)
    assert tile(image, 1, gap=0).tolist() == [[[0, 128, 0, 255]]]


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 4, 4), (0, 1, 4, 4)])
def test_tile_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="images must have shape"):
        image_grid(torch.zeros(shape))


def test_tile_needs_a_column():
    with pytest.raises(ValueError, match="columns must be at least 1; got 0"):
        image_grid(numbered(3), columns=0)


def test_grid_defaults_to_ten_columns():
    assert picture(image_grid(numbered(12))).shape == (6, 30, 4)
    assert picture(image_grid(numbered(4))).shape == (3, 12, 4)


def test_grid_of_rows():
    fig = image_grid(
        [numbered(2), numbered(3)], titles=["a", "b", "c"], row_labels=["data", "model"]
    )
    assert picture(fig).shape == (6, 9, 4)
    assert not picture(fig)[:3, 6:, 3].any()
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["data", "model"]
    assert ax.get_yticks().tolist() == [1.0, 4.0]


def test_grid_fits_the_page():
    assert image_grid(numbered(40), columns=40).get_figwidth() <= WIDTH + 1e-9
    assert image_grid(numbered(2)).get_figwidth() < 2


def test_grid_errors():
    with pytest.raises(ValueError, match="titles must have 2 entries; got 1"):
        image_grid(numbered(2), titles=["a"])
    with pytest.raises(ValueError, match="row_labels must have 1 entries; got 2"):
        image_grid(numbered(2), row_labels=["a", "b"])
    with pytest.raises(ValueError, match="at least one row"):
        image_grid([])
    with pytest.raises(ValueError, match="rows of images must have one size"):
        image_grid([numbered(2), numbered(2, size=3)])
    with pytest.raises(ValueError, match="fit in 2 columns"):
        image_grid([numbered(2), numbered(3)], columns=2)


def test_frames_are_one_tile_a_time():
    images = torch.stack([numbered(4), -numbered(4)])
    frames = image_frames(images, columns=2)
    assert frames.shape == (2, 6, 6, 4)
    assert (frames[1] == tile(-numbered(4), 2)).all()
    assert image_frames(images).shape == (2, 3, 12, 4)


def test_frames_need_five_dimensions():
    with pytest.raises(ValueError, match=r"\(T, N, C, H, W\); got \(3, 1, 2, 2\)"):
        image_frames(numbered(3))


def test_long_row_labels_stay_inside_the_figure():
    figure = image_grid(torch.zeros(24, 1, 8, 8), columns=12, row_labels=["U-Net, short", "real"])
    figure.canvas.draw()
    for label in figure.axes[0].get_yticklabels():
        assert label.get_window_extent().x0 >= 0
