"""Grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.plotting.style import WIDTH, house_style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["image_frames", "image_grid", "tile"]


@house_style()
def image_grid(
    images: Tensor | Sequence[Tensor],
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    size: float = 0.62,
) -> Figure:
    """Images in rows and columns.

    Args:
        images: shape (N, C, H, W) in [-1, 1] with C = 1 (grey) or 3 (colour), laid out row by
            row; or a sequence of such tensors, each of them one row.
        columns: images a row; N up to 10 by default, the longest row for a sequence.
        titles: one above each column.
        row_labels: one to the left of each row.
        size: largest width of an image, in inches; the grid is never wider than the page.

    Returns:
        The figure.

    Raises:
        ValueError: if shapes do not fit, or titles or row labels do not match columns or rows.
    """
    from matplotlib.figure import Figure

    picture, shape = _grid(images, columns)
    for name, texts, count in (("titles", titles, shape[1]), ("row_labels", row_labels, shape[0])):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{name} must have {count} entries; got {len(texts)}")
    height, width = picture.shape[0] / shape[0], picture.shape[1] / shape[1]
    left = 0.1 + 0.09 * max(map(len, row_labels or [""]))  # room for the labels, in inches
    top = 0.3 if titles else 0.05
    size = min(size, (WIDTH - left - 0.05) / shape[1])
    w, h = size * shape[1], size * shape[0] * height / width
    inches = (w + left + 0.05, h + top + 0.05)
    # Placed by hand: the layout engine gives up on so flat a figure and would cut the labels.
    fig = Figure(figsize=inches)
    fig.set_layout_engine("none")
    ax = fig.add_axes((left / inches[0], 0.05 / inches[1], w / inches[0], h / inches[1]))
    ax.imshow(picture, interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.set_xticks([(i + 0.5) * width - 0.5 for i in range(shape[1])], titles or [""] * shape[1])
    ax.set_yticks(
        [(i + 0.5) * height - 0.5 for i in range(shape[0])], row_labels or [""] * shape[0]
    )
    return fig


def image_frames(images: Tensor, *, columns: int | None = None) -> np.ndarray:
    """Frames for :func:`course_lib.plotting.viewer`: at each time, images side by side.

    Args:
        images: shape (T, N, C, H, W) in [-1, 1] with C = 1 or 3; for instance a trajectory.
        columns: images a row; all N in one row by default.

    Returns:
        Pixels of the frames, uint8 RGBA, shape (T, H', W', 4).

    Raises:
        ValueError: if the shape does not fit.
    """
    import numpy as np

    if images.ndim != 5 or 0 in images.shape:
        raise ValueError(f"images must have shape (T, N, C, H, W); got {tuple(images.shape)}")
    return np.stack([tile(frame, columns or images.shape[1]) for frame in images])


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """One picture of many: images row by row, with transparent gaps between them.

    Args:
        images: shape (N, C, H, W) in [-1, 1], C = 1 or 3; values outside are clipped.
        columns: images a row.
        gap: pixels between two images, half of them on each side (rounded up and down).

    Returns:
        uint8 RGBA, shape (rows (H + gap), columns (W + gap), 4).

    Raises:
        ValueError: if the shape does not fit, or ``columns`` is not positive.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images must have shape (N, 1, H, W) or (N, 3, H, W); got {tuple(images.shape)}"
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns}")
    colours = images.detach().cpu().float().clamp(-1, 1).nan_to_num(-1).expand(-1, 3, -1, -1)
    pixels = ((colours + 1) * 127.5).round().byte()
    pixels = torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], dim=1)
    before, after = gap // 2, gap - gap // 2
    pixels = F.pad(pixels, (before, after, before, after))
    missing = -len(pixels) % columns
    pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
    grid = pixels.unflatten(0, (-1, columns))  # (rows, columns, 4, H, W)
    return grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()


def _grid(
    images: Tensor | Sequence[Tensor], columns: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture of a grid, and its numbers of rows and columns."""
    import numpy as np

    if isinstance(images, Tensor):
        columns = min(len(images), 10) if columns is None else columns
        return tile(images, columns), (-(-len(images) // columns), columns)
    if len(images) == 0:
        raise ValueError("images must hold at least one row; got an empty sequence")
    columns = max(map(len, images)) if columns is None else columns
    rows = [tile(row, columns) for row in images]
    if len({row.shape for row in rows}) != 1:
        raise ValueError(
            f"rows of images must have one size and fit in {columns} columns; "
            f"got {[tuple(row.shape) for row in images]}"
        )
    return np.concatenate(rows), (len(rows), columns)
