import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from course_lib.plotting.points import points_picture
from course_lib.plotting.style import PALETTE


def near(colour, picture):
    """Pixels about as coloured as this, on white at an opacity of 0.7."""
    wanted = 255 * (0.3 + 0.7 * np.array(to_rgb(colour)))
    return (np.abs(picture[..., :3] - wanted) < 6).all(-1)


def centre(mask):
    """Centre of the pixels as parts of the picture, from the left and from the top."""
    rows, columns = np.nonzero(mask)
    return columns.mean() / mask.shape[1], rows.mean() / mask.shape[0]


def test_points_are_where_they_should_be_and_classes_have_colours():
    points = torch.tensor([[3.0, 3.0], [-3.0, -3.0], [3.0, 3.0]])
    picture = points_picture(points, torch.tensor([0, 1, 0]))
    assert (picture.shape, picture.dtype) == ((480, 480, 4), np.uint8)
    assert (picture[..., 3] == 255).all()
    x, y = centre(near(PALETTE[1], picture))
    assert x < 0.45 < 0.55 < y
    assert not near(PALETTE[2], picture).any()


def test_without_labels_one_colour_and_far_points_are_not_seen():
    points = torch.tensor([[-3.0, 3.0], [900.0, 0.0], [float("nan"), 1.0]])
    picture = points_picture(points)
    x, y = centre(near(PALETTE[0], picture))
    assert max(x, y) < 0.45
    assert not near(PALETTE[1], picture).any()


def test_the_seventh_class_has_another_marker():
    place = torch.zeros(1, 2)
    first, seventh = (points_picture(place, torch.tensor([k])) for k in (0, 6))
    assert near(PALETTE[0], seventh).sum() > near(PALETTE[0], first).sum() > 0  # a square, a disc


def test_points_of_another_dimension():
    with pytest.raises(ValueError, match=r"points must have shape \(N, 2\); got \(2, 3\)"):
        points_picture(torch.zeros(2, 3))
