"""Figures as PNG, once for light and once for dark pages."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from course_lib.plotting.style import house_style, recolour

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["encoded", "light_and_dark"]


def light_and_dark(fig: Figure, dpi: int = 200) -> tuple[bytes, bytes]:
    """The figure as PNG on a transparent ground, for light and for dark pages.

    Args:
        fig: a figure, best drawn in the house style; it is left as it was.
        dpi: pixels an inch.

    Returns:
        The light and the dark version. Equal figures give equal bytes.
    """
    with house_style("light"):
        light = _png(fig, dpi)  # draws the ticks, which recolouring must find
    layout = fig.get_layout_engine()
    fig.set_layout_engine("none")  # the layout stands; to find it again would double the time
    with house_style("dark"):
        recolour(fig, "dark")
        dark = _png(fig, dpi)
    recolour(fig, "light")
    fig.set_layout_engine(layout)
    return light, dark


def encoded(image: Image) -> bytes:
    """A picture as PNG, as small as it gets."""
    buffer = BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _png(fig: Figure, dpi: int) -> bytes:
    """The figure as PNG; with 256 colours, a quarter of the size, if no picture is in it."""
    from matplotlib.image import AxesImage
    from PIL import Image

    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
    if fig.findobj(AxesImage):
        return buffer.getvalue()
    with Image.open(buffer) as picture:
        return encoded(picture.quantize(256, method=Image.Quantize.FASTOCTREE))
