"""Figures in one house style; :func:`show` puts them into the page with alternative text."""

from course_lib.plotting.animation import viewer
from course_lib.plotting.curves import bars, lines, loss_curve
from course_lib.plotting.display import show
from course_lib.plotting.images import image_frames, image_grid
from course_lib.plotting.planes import density, scatter, trajectories, vector_field
from course_lib.plotting.style import PALETTE, house_style

__all__ = [
    "PALETTE",
    "bars",
    "density",
    "house_style",
    "image_frames",
    "image_grid",
    "lines",
    "loss_curve",
    "scatter",
    "show",
    "trajectories",
    "vector_field",
    "viewer",
]
