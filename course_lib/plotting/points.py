"""Points in the plane as pixels, for loggers and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from course_lib.plotting.style import MARKERS, PALETTE, house_style

if TYPE_CHECKING:
    import numpy as np

__all__ = ["points_picture"]

LIMIT = 6.5  # the shapes of course_lib.data.toy lie within


@house_style()
def points_picture(points: Tensor, labels: Tensor | None = None) -> np.ndarray:
    """Points of the plane, those of a class in one colour and with one marker.

    Args:
        points: shape (N, 2). The axes run from -6.5 to 6.5; what lies outside is not seen.
        labels: classes, int64 of shape (N,); without them all points look alike.

    Returns:
        Pixels, uint8 RGBA, shape (480, 480, 4).

    Raises:
        ValueError: the points have another shape.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2); got {tuple(points.shape)}")
    canvas = FigureCanvasAgg(Figure((4.8, 4.8), dpi=100, facecolor="white"))
    ax = canvas.figure.add_subplot(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
    x = points.detach().cpu()
    classes = [0] if labels is None else labels.unique().tolist()
    for k in classes:
        own = x if labels is None else x[labels.cpu() == k]
        # A colour comes again after six classes, with the next marker.
        colour, marker = PALETTE[k % 6], MARKERS[k // 6 % 6]
        ax.scatter(own[:, 0], own[:, 1], s=12, color=colour, marker=marker, alpha=0.7, linewidths=0)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
