"""Type a prompt in a notebook, and see what is drawn."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.plotting.images import tile
from course_lib.plotting.render import encoded
from course_lib.samplers import sample

if TYPE_CHECKING:
    from ipywidgets import VBox

__all__ = ["draw_prompt", "prompt_widget"]


def draw_prompt(
    denoiser: Denoiser,
    prompt: str,
    negative: str | None = None,
    *,
    shape: tuple[int, ...] = (1, 32, 32),
    n: int = 8,
    scale: float = 2.0,
    steps: int = 12,
    seed: int = 0,
) -> Tensor:
    """Images of one prompt, guided; away from another one, if it is given.

    Args:
        denoiser: one that is asked in words.
        prompt: what to draw.
        negative: what to lead away from, a prompt; None or empty for nothing.
        shape: shape of an image.
        n: number of images.
        scale: guidance scale.
        steps: steps of the solver.
        seed: decides the noise.

    Returns:
        n images of the given shape, on the CPU.

    Raises:
        TypeError: `denoiser` is a bare network.
        ValueError: a prompt or an option is not allowed.
    """
    check_denoiser(denoiser)
    guided = (
        NegativePrompt(denoiser, [negative], scale)
        if negative
        else ClassifierFreeGuidance(denoiser, scale)
    )
    return sample(guided, (n, *shape), cond=[prompt] * n, steps=steps, seed=seed).cpu()


def prompt_widget(
    denoiser: Denoiser,
    prompt: str = "a bold seven",
    *,
    shape: tuple[int, ...] = (1, 32, 32),
    n: int = 8,
    steps: int = 12,
    zoom: int = 2,
) -> VBox:
    """Fields for a prompt and a negative one, a slider for the scale, and the images.

    It needs a running kernel with `ipywidgets`. What is wrong with a prompt stands below it.

    Args:
        denoiser: one that is asked in words.
        prompt: the one to begin with.
        shape: shape of an image.
        n: number of images.
        steps: steps of the solver.
        zoom: screen pixels for each pixel.

    Returns:
        The widget; as the last line of a cell it is displayed.

    Raises:
        TypeError: `denoiser` is a bare network.
    """
    import ipywidgets as w

    check_denoiser(denoiser)
    wide = w.Layout(width="100%")
    asked = w.Text(prompt, description="prompt", continuous_update=False, layout=wide)
    avoided = w.Text("", description="but not", continuous_update=False, layout=wide)
    scale = w.FloatSlider(2.0, min=0, max=8, step=0.5, description="scale", continuous_update=False)
    seed = w.BoundedIntText(0, min=0, max=9999, description="seed")
    picture, message = w.Image(format="png"), w.HTML()

    def draw(_: object = None) -> None:
        options = {"shape": shape, "n": n, "steps": steps, "scale": scale.value, "seed": seed.value}
        try:
            images = draw_prompt(denoiser, asked.value, avoided.value.strip() or None, **options)
        except ValueError as error:
            message.value = f"<code>{html.escape(str(error))}</code>"
            return
        message.value, picture.value = "", _png(images, zoom)

    for control in (asked, avoided, scale, seed):
        control.observe(draw, names="value")
    draw()
    return w.VBox([asked, avoided, w.HBox([scale, seed]), picture, message])


def _png(images: Tensor, zoom: int) -> bytes:
    from PIL import Image

    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return encoded(Image.fromarray(tile(torch.as_tensor(large), len(images), gap=4)))
