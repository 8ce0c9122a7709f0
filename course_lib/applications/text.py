"""Text to image: prompts as conditions of any denoiser.

A :class:`Conditioner` turns a dictionary of conditions into the tokens that a network's
cross-attention takes, and a :class:`ConditionedDenoiser` puts it in front of one. It is a Denoiser
whose ``cond`` may be a prompt, so guidance rules, samplers and losses take it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.data.tokenizer import PAD, tokenize
from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.nets.clip import CLIP, one_caption
from course_lib.nets.embeddings import Context
from course_lib.nets.text_encoder import TextEncoder
from course_lib.objectives import denoising_loss

__all__ = [
    "CaptionLoss",
    "ConditionedDenoiser",
    "Conditioner",
    "embed_prompts",
    "retrieve",
    "zero_shot",
]

KEYS = ("label", "text")


class Conditioner(nn.Module):
    """A dictionary of conditions -> the tokens that a network looks at.

    The label is one token, and each word of the text another. What is not given is masked, and
    then attention does not see it: any subset of the conditions is a condition.

    Args:
        text_encoder: reads the text; its width is that of all tokens.
        num_classes: number of classes C.
    """

    def __init__(self, text_encoder: TextEncoder, num_classes: int = 10) -> None:
        super().__init__()
        self.text_encoder, self.num_classes = text_encoder, num_classes
        self.label = nn.Embedding(num_classes, text_encoder.position.shape[1])

    def forward(self, cond: Any) -> Context:
        """Encode conditions.

        Args:
            cond: a dictionary with "label", int64 of shape (B,) or (1,), C meaning none; and
                "text", a prompt, B prompts (None: no text), or numbers of words (B, N). A key may
                be left out or None. Prompts or labels alone need no dictionary.

        Returns:
            Tokens (B, 1 + N, D), the label's first, and a bool mask (B, 1 + N), True = given.

        Raises:
            TypeError: `cond` is something else.
            ValueError: a key is unknown, nothing is given, or a label or prompt is not allowed.
        """
        given = _dictionary(cond)
        device = self.label.weight.device
        labels, ids = self._labels(given.get("label")), _ids(given.get("text"), self.text_encoder)
        rows = max(len(labels), len(ids))
        if {len(labels), len(ids)} - {1, rows}:
            raise ValueError(f"label and text must agree in rows; got {len(labels)} and {len(ids)}")
        labels, ids = labels.to(device).expand(rows), ids.to(device).expand(rows, -1)
        words, mask = self.text_encoder(ids)
        told = labels < self.num_classes
        label = self.label(labels.clamp(max=self.num_classes - 1))[:, None]
        return torch.cat([label.to(words.dtype), words], 1), torch.cat([told[:, None], mask], 1)

    def _labels(self, value: Any) -> Tensor:
        if value is None:
            return torch.full((1,), self.num_classes)
        labels = torch.as_tensor(value).reshape(-1)
        if labels.dtype != torch.int64:
            raise ValueError(f"label must be int64 of shape (B,); got {labels.dtype}")
        # On an accelerator this check would stall each step.
        if not labels.is_cuda and not bool(((labels >= 0) & (labels <= self.num_classes)).all()):
            raise ValueError(
                f"label must be 0 to {self.num_classes} (the last: none); got "
                f"{sorted(set(labels.tolist()))}"
            )
        return labels


class ConditionedDenoiser(Denoiser):
    """A denoiser that is asked in words.

    Args:
        denoiser: takes tokens with a mask as condition, such as a `NetDenoiser` of a
            ``UNet(context_dim=D)``.
        conditioner: makes them.

    Raises:
        TypeError: `denoiser` is a bare network.
    """

    def __init__(self, denoiser: Denoiser, conditioner: Conditioner) -> None:
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.conditioner = denoiser, conditioner
        self.path, self.predicts = denoiser.path, denoiser.predicts

    def encode_condition(self, cond: Any) -> Any:
        """What the conditioner makes of `cond`; None and what is encoded stay as they are."""
        encoded = isinstance(cond, tuple) and any(isinstance(part, Tensor) for part in cond)
        return cond if cond is None or encoded else self.conditioner(cond)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The prediction of the denoiser within, given a dictionary, prompts, labels or None."""
        return self.denoiser.predict(xt, t, self.encode_condition(cond))

    def null_condition(self, cond: Any) -> Any:
        """The condition of which nothing is given, encoded."""
        return self.denoiser.null_condition(self.encode_condition(cond))


@dataclass(frozen=True)
class CaptionLoss:
    """An objective for images with captions: each time with another one, or with none.

    Label and caption are hidden independently of each other. So the model learns each alone, both
    together, and neither, which guidance needs (Ho & Salimans, 2022, algorithm 1).

    Args:
        p_label: probability of hiding the label.
        p_text: probability of hiding the text.
        objective: what is called with the conditions that are left.

    Raises:
        ValueError: a probability lies outside [0, 1].
    """

    p_label: float = 0.5
    p_text: float = 0.2
    objective: Callable[..., Any] = denoising_loss

    def __post_init__(self) -> None:
        for name in ("p_label", "p_text"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")

    def __call__(
        self,
        denoiser: ConditionedDenoiser,
        x0: Tensor,
        cond: tuple[Tensor, Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The objective's loss.

        Args:
            denoiser: the model.
            x0: images, shape (B, 1, H, W).
            cond: labels (B,), and numbers of words of K captions of each image, (B, K, N).
            generator: source of all randomness.
        """
        labels, texts = cond
        ids = one_caption(texts, generator)
        draws = torch.rand(2, len(x0), generator=generator, device=x0.device)
        none = denoiser.conditioner.num_classes
        given = {
            "label": torch.where(draws[0] < self.p_label, none, labels),
            "text": torch.where((draws[1] < self.p_text)[:, None], PAD, ids),
        }
        return self.objective(denoiser, x0, given, generator=generator)


@torch.no_grad()
def zero_shot(clip: CLIP, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Classify images by prompts alone: softmax over the cosines (Radford et al., 2021, 3.1).

    Args:
        clip: the model.
        images: shape (B, 1, H, W) in [-1, 1].
        prompts: one for each class, K in all.

    Returns:
        Probabilities, shape (B, K).

    Raises:
        ValueError: a prompt is not allowed, or the images have another shape.
    """
    texts = embed_prompts(clip, prompts)
    cosines = torch.cat([clip.embed_images(x.to(texts)) for x in images.split(500)]) @ texts.mT
    return (cosines / clip.temperature).softmax(1)


@torch.no_grad()
def retrieve(clip: CLIP, prompts: Sequence[str], images: Tensor, k: int = 10) -> Tensor:
    """The images nearest to prompts, nearest first.

    Args:
        clip: the model.
        prompts: M texts.
        images: shape (B, 1, H, W) in [-1, 1].
        k: how many, at most B.

    Returns:
        Their numbers, int64 of shape (M, k).

    Raises:
        ValueError: `k` is out of range, or as for `zero_shot`.
    """
    if not 1 <= k <= len(images):
        raise ValueError(f"k must be 1 to {len(images)}; got {k}")
    texts = embed_prompts(clip, prompts)
    seen = torch.cat([clip.embed_images(x.to(texts)) for x in images.split(500)])
    return (texts @ seen.mT).topk(k).indices


@torch.no_grad()
def embed_prompts(clip: CLIP, prompts: str | Sequence[str]) -> Tensor:
    """Unit vectors of prompts, shape (M, D).

    Raises:
        TypeError: a prompt is no text.
        ValueError: a prompt is not allowed.
    """
    ids, _ = tokenize(prompts, len(clip.text_encoder.position))
    return clip.embed_texts(ids.to(clip.log_scale.device))


def _dictionary(cond: Any) -> Mapping[str, Any]:
    """Conditions by name; of prompts or labels alone too."""
    if isinstance(cond, Tensor):
        cond = {"label" if cond.ndim < 2 else "text": cond}
    elif isinstance(cond, str | Sequence):
        cond = {"text": cond}
    if not isinstance(cond, Mapping):
        raise TypeError(
            f"cond must be a dictionary with {' and '.join(KEYS)}, prompts, or labels; got "
            f"{type(cond).__name__}"
        )
    if set(cond) - set(KEYS):
        raise ValueError(f"cond must have the keys {', '.join(KEYS)}; got {', '.join(cond)}")
    if all(value is None for value in cond.values()):
        raise ValueError("cond must give a label or a text; for no condition give None itself")
    return cond


def _ids(value: Any, encoder: TextEncoder) -> Tensor:
    """Numbers of words, (B, N)."""
    if isinstance(value, Tensor):
        return value
    return tokenize([None] if value is None else value, len(encoder.position))[0]
