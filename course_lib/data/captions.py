"""Captions of digits, written from what was measured, in many phrasings; and read again.

A small grammar makes thousands of captions: an opening, a noun, and the attributes before it,
after it or in a clause, in any order, each with several words. So a model must learn language, not
a list of labels. The other direction, `understood`, finds what a prompt asks for, and `follows`
whether images have it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.data.attributes import ATTRIBUTES, levels

__all__ = ["DIGITS", "NOUNS", "WORDS", "Wanted", "captions", "follows", "understood"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = ("digit", "number", "numeral")
"""What a digit is called whose class is not told."""
WORDS: dict[tuple[str, int], tuple[str, ...]] = {
    ("weight", 1): ("bold", "thick", "heavy"),
    ("weight", -1): ("thin", "light", "fine"),
    ("slant", 1): (
        "leaning right", "leaning to the right", "slanted to the right", "tilted right",
    ),
    ("slant", -1): ("leaning left", "leaning to the left", "slanted to the left", "tilted left"),
    ("width", 1): ("wide", "broad"),
    ("width", -1): ("narrow", "slim"),
    ("size", 1): ("large", "big", "huge"),
    ("size", -1): ("small", "tiny", "little"),
}  # fmt: skip
"""The synonyms of each attribute's two sides."""
OPENINGS = ("", "", "", "a picture of", "an image of", "a drawing of", "this is", "here is")

_MEANING = {
    word: (ATTRIBUTES.index(attribute), level)
    for (attribute, level), phrases in WORDS.items()
    for phrase in phrases
    for word in ([phrase.split()[-1]] if attribute == "slant" else [phrase])
}  # of slants "right" and "left" alone
_CLASS = {name: i for i, word in enumerate(DIGITS) for name in (word, str(i))}


class Wanted(NamedTuple):
    """What prompts ask for."""

    labels: Tensor
    """The digit, int64 of shape (B,); -1 where none is named."""
    levels: Tensor
    """For each of `ATTRIBUTES` 1, -1, or 0 where nothing is asked; int64 of shape (B, 4)."""


def captions(
    images: Tensor, labels: Tensor, generator: torch.Generator | None = None, each: int = 1
) -> list[str]:
    """Captions of digits; each mentions some of what is clear, and nothing that is not so.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        labels: which digits they are, int64 of shape (B,).
        generator: source of the randomness.
        each: captions of each image.

    Returns:
        each * B captions, those of one image side by side.

    Raises:
        ValueError: shapes do not fit.
    """
    seed = torch.empty(1, dtype=torch.int64).random_(generator=generator)
    rng = random.Random(int(seed))
    clear = levels(images, labels).tolist()
    pairs = zip(labels.tolist(), clear, strict=True)
    return [_caption(label, row, rng) for label, row in pairs for _ in range(each)]


def understood(prompts: Sequence[str]) -> Wanted:
    """What prompts ask for, by their words.

    Args:
        prompts: texts, such as captions, or one. Words that mean no digit and no attribute are
            passed over.

    Returns:
        Labels and levels.

    Raises:
        ValueError: a prompt asks for two digits, or for both sides of an attribute.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    labels = torch.full((len(prompts),), -1)
    asked = torch.zeros(len(prompts), len(ATTRIBUTES), dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        for word in re.findall(r"\w+", prompt.lower()):
            if word in _CLASS:
                _note(labels, (i,), _CLASS[word], prompt, -1)
            elif word in _MEANING:
                attribute, level = _MEANING[word]
                _note(asked, (i, attribute), level, prompt, 0)
    return Wanted(labels, asked)


def follows(images: Tensor, prompts: Sequence[str], labels: Tensor | None = None) -> Tensor:
    """Which of the attributes that prompts ask for the images have, by the captions' limits.

    Args:
        images: shape (B, 1, H, W) in [-1, 1].
        prompts: B texts.
        labels: which digits the images show, int64 of shape (B,), since what is clear depends on
            the digit; by default what the prompts name.

    Returns:
        For each of `ATTRIBUTES` 1 where it is as asked, 0 where it is not, NaN where nothing is
        asked; float of shape (B, 4). `nanmean(0)` is the agreement.

    Raises:
        ValueError: shapes do not fit, or a prompt names no digit and no labels are given.
    """
    if len(prompts) != len(images):
        raise ValueError(f"prompts must be {len(images)}, one an image; got {len(prompts)}")
    wanted = understood(prompts)
    if labels is None and bool((wanted.labels < 0).any()):
        nameless = prompts[int((wanted.labels < 0).nonzero()[0])]
        raise ValueError(f"labels must be given where a prompt names no digit: {nameless!r}")
    found = levels(images, wanted.labels if labels is None else labels).cpu()
    return torch.where(wanted.levels == 0, torch.nan, (found == wanted.levels).float())


def _note(into: Tensor, place: tuple[int, ...], value: int, prompt: str, none: int) -> None:
    if into[place] not in (none, value):
        raise ValueError(f"prompts must not contradict themselves; got {prompt!r}")
    into[place] = value


def _caption(label: int, clear: Sequence[int], rng: random.Random) -> str:
    """One caption: of each clear attribute mostly a word, of the class mostly its name."""
    told = [
        (attribute, rng.choice(WORDS[attribute, level]))
        for attribute, level in zip(ATTRIBUTES, clear, strict=True)
        if level and rng.random() < 0.6
    ]
    rng.shuffle(told)
    named = not told or rng.random() < 0.85
    name = rng.choice((DIGITS[label], str(label)) if named else NOUNS)
    if named and rng.random() < 0.3:
        name = f"{rng.choice(NOUNS)} {name}"
    if rng.random() < 0.15:
        name = f"handwritten {name}"
    return _phrase(name, told, rng)


def _phrase(name: str, told: Sequence[tuple[str, str]], rng: random.Random) -> str:
    """Words before the noun, after it, in a clause, or in front of all."""
    opening, form = (
        rng.choice(OPENINGS),
        rng.choice(("before", "before", "after", "clause", "front")),
    )
    adjectives = [word for attribute, word in told if attribute != "slant"]
    slant = [word for attribute, word in told if attribute == "slant"]
    everything = _listed([word for _, word in told])
    if form == "before" or not told:
        noun = " ".join([*adjectives, name])
        return " ".join(filter(None, [opening, _article(noun), *slant]))
    if form == "front":
        return f"{everything}: {_article(name)}"
    link = ", " if form == "after" else " that is "
    return f"{opening} {_article(name)}{link}{everything}".strip()


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _article(noun: str) -> str:
    """A noun with "a" or "an" as it is spoken."""
    return f"{'an' if re.match('eight|8', noun) else 'a'} {noun}"
