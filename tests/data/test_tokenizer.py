"""Words to numbers, and what is no word."""

import pytest
import torch

from course_lib.data import VOCABULARY, tokenize
from course_lib.data.captions import DIGITS, NOUNS, WORDS
from course_lib.data.tokenizer import BEGIN, END, MAX_LENGTH, NEGATIONS, PAD, words


def test_by_hand():
    ids, mask = tokenize(["a bold seven", "7"], length=6)
    a, bold, seven, digit = (VOCABULARY.index(word) for word in ("a", "bold", "seven", "7"))
    assert ids.tolist() == [[BEGIN, a, bold, seven, END, PAD], [BEGIN, digit, END, *3 * [PAD]]]
    assert mask.tolist() == [5 * [True] + [False], 3 * [True] + 3 * [False]]
    assert ids.dtype == torch.int64


def test_the_pretrained_models_know_these_words_in_this_order():
    """Their embeddings hold a row for each: another order would be another language."""
    assert len(VOCABULARY) == 61
    assert VOCABULARY[:3] == ("<pad>", "<begin>", "<end>")
    assert VOCABULARY[3:13] == DIGITS
    assert VOCABULARY[13:23] == tuple("0123456789")
    assert VOCABULARY[23:26] == NOUNS
    assert VOCABULARY[-1] == "little"
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert not set(NEGATIONS) & set(VOCABULARY)
    assert all(w in VOCABULARY for phrases in WORDS.values() for p in phrases for w in words(p))


def test_case_punctuation_and_spaces_do_not_matter():
    plain, _ = tokenize("a bold seven leaning left")
    for text in ("A BOLD seven, leaning left!", "  a\tbold  (seven) leaning\nleft. "):
        assert torch.equal(tokenize(text)[0], plain)


def test_every_row_can_be_read_back():
    texts = [f"a {word}" for word in VOCABULARY[3:]]
    ids, mask = tokenize(texts)
    assert ids.shape == (len(texts), MAX_LENGTH)
    for row, known, text in zip(ids, mask, texts, strict=True):
        assert [VOCABULARY[i] for i in row[known][1:-1]] == words(text)


def test_no_text_is_padding_alone():
    ids, mask = tokenize([None, "a seven"])
    assert (ids[0] == PAD).all()
    assert not mask[0].any()
    assert mask[1].any()


def test_the_longest_prompt_fills_the_row():
    ids, mask = tokenize("seven " * (MAX_LENGTH - 2))
    assert mask.all()
    assert ids[0, -1] == END


@pytest.mark.parametrize(
    ("wrong", "near"), [("sevn", "seven"), ("bald", "bold"), ("tinny", "tiny"), ("lefty", "left")]
)
def test_an_unknown_word_is_named_with_the_nearest_known(wrong, near):
    with pytest.raises(ValueError, match=f"unknown word '{wrong}' in .*; nearest known: {near}"):
        tokenize(["a seven", f"a {wrong} digit"])


def test_a_word_that_is_like_no_other_gets_the_whole_list():
    with pytest.raises(ValueError, match="unknown word 'zzz'") as caught:
        tokenize("zzz")
    known = str(caught.value).split("nearest known: ")[1].split(", ")
    assert set(known) == set(VOCABULARY[3:])


@pytest.mark.parametrize("mark", ["<pad>", "<begin>", "<end>"])
def test_marks_cannot_be_written(mark):
    with pytest.raises(ValueError, match=r"unknown word '(pad|begin|end)'"):
        tokenize(f"a seven {mark}")


@pytest.mark.parametrize("word", NEGATIONS)
def test_what_is_not_wanted_is_sent_to_the_negative_prompt(word):
    with pytest.raises(ValueError, match=rf"{word!r} in .* is no word of it.*NegativePrompt"):
        tokenize(f"a seven, {word} bold")


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "prompts must hold at least one text; got none"),
        ("", ValueError, "a prompt must have a word; got ''"),
        (["a seven", " ?! "], ValueError, r"a prompt must have a word; got ' \?! '"),
        ("a " * 19, ValueError, "a prompt must have at most 18 words; got 19: 'a a"),
        ([7], TypeError, "prompts must be texts; got int"),
        (["seven", b"two"], TypeError, "prompts must be texts; got bytes"),
        (7, TypeError, "prompts must be texts; got int"),
    ],
)
def test_what_is_no_prompt(prompts, error, message):
    with pytest.raises(error, match=message):
        tokenize(prompts)
