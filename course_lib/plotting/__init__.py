"""Figures in one house style; :func:`show` puts them into the page with alternative text."""

from course_lib.plotting.animation import viewer
from course_lib.plotting.curves import bars, line_panels, lines, loss_curve
from course_lib.plotting.display import show
from course_lib.plotting.images import image_frames, image_grid
from course_lib.plotting.planes import density, scatter, trajectories, vector_field
from course_lib.plotting.style import PALETTE, house_style
from course_lib.plotting.trajectory_viewer import Run, trajectory_viewer

__all__ = [
    "PALETTE",
    "Run",
    "bars",
    "density",
    "house_style",
    "image_frames",
    "image_grid",
    "line_panels",
    "lines",
    "loss_curve",
    "scatter",
    "show",
    "trajectories",
    "trajectory_viewer",
    "vector_field",
    "viewer",
]
