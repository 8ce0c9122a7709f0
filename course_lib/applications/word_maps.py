"""Where does a model look at a word? Its cross-attention, drawn for each word of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.applications.text import ConditionedDenoiser
from course_lib.data.tokenizer import words
from course_lib.denoisers import Denoiser
from course_lib.nets.attention import attention_maps

__all__ = ["WordMaps", "word_maps"]


class WordMaps(NamedTuple):
    """How the positions of images divide their attention among the tokens of a prompt."""

    words: list[str]
    """The tokens, that is "(none)", the learned one that is always there, "(begin)", the words,
    "(end)"."""
    maps: Tensor
    """Shape (B, len(words), H', W'), at the resolution of the attention. At each position the
    tokens' parts sum to one."""


@torch.no_grad()
def word_maps(
    denoiser: ConditionedDenoiser,
    x0: Tensor,
    prompt: str,
    *,
    times: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    seed: int = 0,
) -> WordMaps:
    """Attention to each word of a prompt, while the denoiser looks at noised images.

    The mean over times, layers and heads (Tang et al., 2023, "What the DAAM", add them up). A map
    says what was read where. It is no proof that the word made the pixels: the text encoder is
    causal, so each token tells of the words before it, too.

    Args:
        denoiser: what is asked in words; its network has cross-attention.
        x0: images, for instance samples of this prompt, shape (B, C, H, W).
        prompt: one prompt for all.
        times: levels of noise.
        seed: decides the noise.

    Returns:
        The tokens and their maps.

    Raises:
        TypeError: `denoiser` is none that is asked in words.
        ValueError: the prompt is not allowed, a time lies outside [0, 1], or the network has no
            cross-attention.
    """
    if not isinstance(denoiser, ConditionedDenoiser):
        raise TypeError(f"denoiser must be a ConditionedDenoiser; got {type(denoiser).__name__}")
    tokens, mask = denoiser.encode_condition(prompt)
    cond = tokens.expand(len(x0), -1, -1), mask.expand(len(x0), -1)
    generator = torch.Generator(x0.device).manual_seed(seed)
    seen = []
    for level in times:
        t = torch.full((len(x0),), float(level), device=x0.device, dtype=x0.dtype)
        eps = torch.empty_like(x0).normal_(generator=generator)
        xt = denoiser.path.sample(x0, t, eps)
        seen += [a.mean(1) for a in attention_maps(_Predicting(denoiser), xt, t, cond)]
    mean = torch.stack(seen).mean(0)[..., [0, *range(2, len(words(prompt)) + 4)]]  # no label: 1
    rows = round((mean.shape[1] * x0.shape[2] / x0.shape[3]) ** 0.5)
    named = ["(none)", "(begin)", *words(prompt), "(end)"]
    return WordMaps(named, mean.mT.unflatten(2, (rows, -1)))


class _Predicting(nn.Module):
    """A denoiser's prediction as a module's forward, which can be watched."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, xt: Tensor, t: Tensor, cond: tuple[Tensor, Tensor]) -> Tensor:
        return self.denoiser.predict(xt, t, cond)
