"""CLIP guidance: a model that was never told anything, led by words.

A CLIP says how well an image fits a prompt, and is differentiable. So it can be the classifier of
classifier guidance; the denoiser knows neither words nor labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.applications.text import embed_prompts
from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.nets.clip import CLIP

__all__ = ["clip_log_prob"]


def clip_log_prob(
    clip: CLIP, denoiser: Denoiser, against: Sequence[str] | None = None
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """What :class:`~course_lib.guidance.ClassifierGuidance` needs to follow a CLIP.

    The CLIP has seen no noise, so it is shown the denoised image E[x_0 | x_t] (Bansal et al., 2024,
    "Universal Guidance for Diffusion Models"). The gradient goes through the denoiser. Since the
    mean stands for all x_0, this is not log p(c | x_t), but near it where the denoiser is certain.

    Args:
        clip: the model. Its cosine over the temperature is, at the optimum of its loss,
            log p(prompt | image) up to what does not depend on the image.
        denoiser: the one that is led; the images have the size that the CLIP knows.
        against: other prompts that the image must fit less, such as one for each class. The value
            is then the logarithm of a softmax over them and the prompt asked for.

    Returns:
        ``log_prob(xt, t, cond) -> (B,)`` with `cond` a prompt, or B prompts.

    Raises:
        TypeError: `denoiser` is a bare network.
        ValueError: a prompt is not allowed; and, when called, if there are neither 1 nor B prompts.
    """
    check_denoiser(denoiser)
    others = None if against is None else embed_prompts(clip, against)

    def log_prob(xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        wanted = embed_prompts(clip, cond)
        if len(wanted) not in (1, len(xt)):
            raise ValueError(f"cond must be 1 or {len(xt)} prompts; got {len(wanted)}")
        seen = clip.embed_images(denoiser.data(xt, t).to(wanted.dtype))
        own = (seen * wanted).sum(1) / clip.temperature
        if others is None:
            return own
        same = (wanted @ others.mT > 1 - 1e-5).expand(len(xt), -1)  # the prompt counts once
        rest = (seen @ others.mT / clip.temperature).masked_fill(same, -torch.inf)
        return own - torch.logaddexp(own, rest.logsumexp(1))

    return log_prob
