"""From prompts to numbers: one for each word of the captions' language."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from course_lib.data.captions import DIGITS, NOUNS, OPENINGS, WORDS

__all__ = ["BEGIN", "END", "MAX_LENGTH", "PAD", "VOCABULARY", "tokenize", "words"]

PAD, BEGIN, END = 0, 1, 2
MAX_LENGTH = 20
"""Tokens of a prompt at most, with the two that mark its begin and its end."""

_LANGUAGE = [*DIGITS, *map(str, range(10)), *NOUNS, *OPENINGS, "a an and that is handwritten the"]
VOCABULARY: tuple[str, ...] = (
    "<pad>", "<begin>", "<end>",
    *dict.fromkeys(
        word
        for phrase in [*_LANGUAGE, *(p for synonyms in WORDS.values() for p in synonyms)]
        for word in phrase.split()
    ),
)  # fmt: skip
"""Every word; its place is its number."""
NEGATIONS = ("not", "no", "non", "without", "never", "but", "except")
"""Words that people use to say what they do not want; captions have none of them."""
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def words(prompt: str) -> list[str]:
    """The words of a prompt, in lower case, without punctuation."""
    return re.findall(r"\w+", prompt.lower())


def tokenize(
    prompts: str | Sequence[str | None], length: int = MAX_LENGTH
) -> tuple[Tensor, Tensor]:
    """Numbers of the words of prompts, between a begin and an end, padded to one length.

    Args:
        prompts: texts; None stands for no text, and becomes padding alone.
        length: tokens of a row.

    Returns:
        Ids, int64 of shape (B, length), and which of them are no padding, bool of the same shape.

    Raises:
        TypeError: a prompt is no text.
        ValueError: there are no prompts, or one is empty, too long, or has an unknown word.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        prompts = [prompts]
    ids = torch.tensor([_row(prompt, length) for prompt in prompts])
    if not len(ids):
        raise ValueError("prompts must hold at least one text; got none")
    return ids, ids != PAD


def _row(prompt: str | None, length: int) -> list[int]:
    if prompt is None:
        return [PAD] * length
    if not isinstance(prompt, str):
        raise TypeError(f"prompts must be texts; got {type(prompt).__name__}")
    found = words(prompt)
    if not found:
        raise ValueError(f"a prompt must have a word; got {prompt!r} (None stands for no text)")
    if len(found) > length - 2:
        raise ValueError(
            f"a prompt must have at most {length - 2} words; got {len(found)}: {prompt!r}"
        )
    numbers = [BEGIN, *(_number(word, prompt) for word in found), END]
    return numbers + [PAD] * (length - len(numbers))


def _number(word: str, prompt: str) -> int:
    if word in NEGATIONS:
        raise ValueError(
            f"a prompt says what to draw; {word!r} in {prompt!r} is no word of it. What to lead "
            f"away from is a prompt of its own, the negative of course_lib.guidance.NegativePrompt"
        )
    if word not in _NUMBERS:
        known = VOCABULARY[3:]
        near = difflib.get_close_matches(word, known, 3, 0.5) or sorted(known)
        raise ValueError(f"unknown word {word!r} in {prompt!r}; nearest known: {', '.join(near)}")
    return _NUMBERS[word]
