"""The frame viewer: precomputed frames under a slider, alive in a page without a kernel.

Everything is inside the page: the frames as PNG, the controls as HTML, and a script of some
forty lines. Without scripts the first frame stays as an ordinary figure.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_lib.plotting.display import (
    as_text,
    checked_alt,
    close,
    image_tag,
    page_size,
    publish,
    wrap,
)
from course_lib.plotting.player import PLAYER, controls, controls_css
from course_lib.plotting.render import encoded, light_and_dark
from course_lib.plotting.style import WIDTH

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["viewer", "viewer_html"]

_CSS = f"""\
<style>
.course-viewer .course-pixels{{image-rendering:pixelated}}
.course-viewer[data-drag] img{{cursor:grab;touch-action:pan-y;user-select:none}}
{controls_css("course-viewer")}</style>
"""

# A page may hold many viewers, also equal ones: each run of the script wakes those still asleep.
_SCRIPT = (
    """\
<script>
document.querySelectorAll(".course-viewer:not([data-ready])").forEach((root) => {
  root.dataset.ready = "true";
  const labels = JSON.parse(root.dataset.labels);
  const images = [...root.querySelectorAll("img")];
  const sources = images.map((image) => image.dataset.frames.split(" "));
  const slider = root.querySelector("input"), button = root.querySelector("button");
  const label = root.querySelector(".course-label");
  const pace = () => Number(root.dataset.interval);
  const draw = () => {
    const i = Number(slider.value);
    images.forEach((image, k) => { image.src = "data:image/png;base64," + sources[k][i]; });
    label.textContent = labels[i];
    slider.setAttribute("aria-valuetext", labels[i]);
  };
"""
    + PLAYER
    + """\
  if (root.hasAttribute("data-drag")) images.forEach((image) => {
    let grip = null;
    image.draggable = false;
    image.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pause();
      grip = { x: event.clientX, at: Number(slider.value) };
      image.setPointerCapture(event.pointerId);
    });
    image.addEventListener("pointermove", (event) => {
      if (grip === null) return;
      const n = labels.length, part = (grip.x - event.clientX) / image.clientWidth;
      slider.value = (((grip.at + Math.round(n * part)) % n) + n) % n;
      draw();
    });
    image.addEventListener("lostpointercapture", () => { grip = null; });
  });
  root.querySelector(".course-controls").style.display = "flex";
  draw();
});
</script>
"""
)


def viewer(
    frames: Sequence[Figure] | np.ndarray,
    *,
    labels: Sequence[str],
    alt: str,
    caption: str | None = None,
    width: int | None = None,
    interval: int = 150,
    drag: bool = False,
) -> None:
    """Display frames under a slider with a play button, in a notebook and in the built page.

    Args:
        frames: figures of one size, drawn in the house style; or pixels, uint8 of shape
            (T, H, W) or (T, H, W, 4), for instance from
            :func:`course_lib.plotting.image_frames`, shown enlarged and unblurred.
        labels: what each frame is, such as "t = 0.30"; one a frame. Read aloud by screen readers.
        alt: what the frames show together: the finding, in a sentence.
        caption: text below; TeX between dollar signs becomes a formula.
        width: width on the page in pixels; 100 an inch for figures, a whole multiple of the
            pixels up to the width of the page for pixels.
        interval: milliseconds a frame while playing.
        drag: for frames of a full turn around something: a mouse or a finger turns it too. Once
            across the picture is one turn, to the left forwards, and the first frame follows the
            last.

    Raises:
        ValueError: if ``alt`` is empty, there is no frame, the labels do not match the frames, or
            pixels have the wrong shape or dtype.
    """
    markup = viewer_html(
        frames,
        labels=labels,
        alt=alt,
        caption=caption,
        width=width,
        interval=interval,
        drag=drag,
    )
    publish(markup, alt)
    if not hasattr(frames, "dtype"):
        for fig in frames:
            close(fig)


def viewer_html(
    frames: Sequence[Figure] | np.ndarray,
    *,
    labels: Sequence[str],
    alt: str,
    caption: str | None = None,
    width: int | None = None,
    interval: int = 150,
    drag: bool = False,
) -> str:
    """The HTML that :func:`viewer` displays; the arguments are the same.

    Raises:
        ValueError: as :func:`viewer` does.
    """
    import numpy as np

    alt = checked_alt(alt)
    labels = [str(label) for label in labels]
    if len(frames) == 0 or len(labels) != len(frames):
        raise ValueError(
            f"labels must have one entry a frame, of at least one frame; "
            f"got {len(labels)} labels and {len(frames)} frames"
        )
    if isinstance(frames, np.ndarray):
        images = _pixel_images(frames, alt, width)
    else:
        images = _figure_images(frames, alt, width)
    attributes = (
        f'class="course-figure course-viewer" data-interval="{interval}" '
        f'data-labels="{html.escape(json.dumps(labels))}"{" data-drag" if drag else ""}'
    )
    return _CSS + wrap(images + controls(labels, 0, "Frame"), caption, attributes) + _SCRIPT


def _images(frames: Sequence[bytes], alt: str, size: tuple[int, int], name: str) -> str:
    """An <img> that shows the first frame and carries all of them."""
    codes = [as_text(frame) for frame in frames]
    return image_tag(codes[0], alt, size, name, f' data-frames="{" ".join(codes)}"')


def _figure_images(figures: Sequence[Figure], alt: str, width: int | None) -> str:
    """A light and a dark <img> of figures; a little coarser than a still, since frames add up."""
    size = page_size(figures[0], width)
    light, dark = zip(*(light_and_dark(fig, dpi=150) for fig in figures), strict=True)
    return _images(light, alt, size, "light") + _images(dark, alt, size, "dark")


def _pixel_images(pixels: np.ndarray, alt: str, width: int | None) -> str:
    """One <img>, the same on light and dark pages, of pixels drawn enlarged."""
    from PIL import Image

    colours = pixels.shape[3:]
    if pixels.ndim < 3 or colours not in ((), (4,)) or str(pixels.dtype) != "uint8":
        raise ValueError(
            "frames must be figures, or uint8 pixels of shape (T, H, W) or (T, H, W, 4); "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    grey = colours == (4,) and bool((pixels[..., :3] == pixels[..., :1]).all())
    images = [Image.fromarray(frame) for frame in pixels]
    frames = [encoded(image.convert("LA") if grey else image) for image in images]
    rows, columns = pixels.shape[1:3]
    width = columns * max(1, min(16, int(100 * WIDTH) // columns)) if width is None else width
    return _images(frames, alt, (width, round(width * rows / columns)), "pixels")
