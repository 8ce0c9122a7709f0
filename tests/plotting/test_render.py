"""Rendered pixels: ink of the right theme, a clear ground, exact pictures, equal bytes."""

from io import BytesIO

import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from course_lib.plotting import image_grid, lines
from course_lib.plotting.render import light_and_dark


def curve():
    return lines([0.0, 1.0], {"a": [0.0, 1.0], "b": [1.0, 0.0]}, xlabel="x", ylabel="y")


def pixels(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(int)


def test_size_is_inches_times_dpi():
    light, dark = light_and_dark(curve(), dpi=50)
    assert pixels(light).shape == pixels(dark).shape == (170, 320, 4)


def test_ground_is_clear_and_ink_follows_the_theme():
    light, dark = (pixels(png) for png in light_and_dark(curve()))
    for picture in (light, dark):
        assert (picture[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()

    def share(picture, brightest, darkest):
        """How many opaque grey pixels lie between two levels."""
        solid = picture[picture[..., 3] > 250][:, :3]
        grey = solid[np.ptp(solid, axis=1) < 16].mean(1)
        return ((grey >= darkest) & (grey <= brightest)).sum()

    assert share(light, 60, 0) > 500
    assert share(light, 240, 225) < share(dark, 240, 225) / 5
    assert share(dark, 60, 0) < 500 < share(dark, 240, 225)


def test_equal_figures_give_equal_bytes():
    fig = curve()
    first = light_and_dark(fig, dpi=50)
    assert light_and_dark(fig, dpi=50) == first
    assert light_and_dark(curve(), dpi=50) == first


def test_figure_stays_as_it_was():
    fig = curve()
    layout = fig.get_layout_engine()
    light_and_dark(fig, dpi=50)
    assert fig.get_layout_engine() is layout
    assert to_hex(fig.axes[0].xaxis.label.get_color()) == "#1f2328"


def test_pictures_keep_every_grey_level():
    ramp = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    light, _ = light_and_dark(image_grid(ramp, size=1.6))
    picture = pixels(light)
    assert len(np.unique(picture[picture[..., 3] == 255][:, 0])) == 256


def test_own_figures_in_default_style_turn_too():
    fig = Figure()
    fig.text(0.5, 0.5, "words", color="k", size=60)
    _, dark = light_and_dark(fig, dpi=50)
    solid = pixels(dark)[pixels(dark)[..., 3] > 250]
    assert len(solid) > 100
    assert solid[:, :3].min() > 200
