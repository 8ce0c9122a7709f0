"""Do samples show what their prompts ask for? And does a CLIP know what belongs together?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.applications.text import retrieve, zero_shot
from course_lib.data import ATTRIBUTES, follows, normalised, understood
from course_lib.evaluation.features import digit_logits
from course_lib.nets.clip import CLIP

__all__ = ["prompt_agreement", "retrieval_recall", "zero_shot_accuracy"]


def prompt_agreement(images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of the images that are as their prompts ask.

    Digits are read by the pretrained classifier, at the size that it knows. The attributes are
    measured by the code that wrote the captions; where a prompt names no digit, for the digit read.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        prompts: B texts.

    Returns:
        `class_agreement`, and `weight_agreement` and so on for each of `ATTRIBUTES`; each over the
        prompts that ask for it, and left out if none does.

    Raises:
        ValueError: shapes do not fit.
    """
    asked = understood(prompts).labels
    read = digit_logits(normalised(images.cpu())).argmax(1)
    named = asked >= 0
    agree = follows(images.cpu(), prompts, torch.where(named, asked, read)).nanmean(0)
    found = {"class_agreement": (asked == read)[named].double().mean()}
    found |= {f"{name}_agreement": a for name, a in zip(ATTRIBUTES, agree, strict=True)}
    return {name: round(float(a), 4) for name, a in found.items() if not a.isnan()}


def zero_shot_accuracy(clip: CLIP, images: Tensor, labels: Tensor, prompts: Sequence[str]) -> float:
    """Share of the images whose own prompt is nearest.

    Args:
        clip: the model.
        images: shape (B, 1, H, W) in [-1, 1].
        labels: which of the prompts is right, int64 of shape (B,).
        prompts: one for each class.
    """
    nearest = zero_shot(clip, images, prompts).argmax(1).cpu()
    return (nearest == labels.cpu()).double().mean().item()


def retrieval_recall(
    clip: CLIP, images: Tensor, prompts: Sequence[str], ks: Sequence[int] = (1, 10)
) -> dict[int, float]:
    """How often an image with just this caption is among the k nearest to the caption.

    Args:
        clip: the model.
        images: shape (B, 1, H, W) in [-1, 1].
        prompts: their captions, B.
        ks: the numbers k.

    Returns:
        Recall for each k.
    """
    ranked = retrieve(clip, prompts, images, max(ks)).cpu()
    texts = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
    kind = torch.tensor([texts[text] for text in prompts])
    hit = kind[ranked] == kind[:, None]
    return {k: hit[:, :k].any(1).double().mean().item() for k in ks}
