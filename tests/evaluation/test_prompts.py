"""Prompt following and CLIP's numbers against counts by hand."""

import pytest
import torch
from pictures import handwriting
from torch import nn

from course_lib.data import ATTRIBUTES, captions, normalised, tokenize
from course_lib.data.attributes import LIMITS, measure
from course_lib.data.captions import WORDS
from course_lib.evaluation import (
    digit_logits,
    prompt_agreement,
    retrieval_recall,
    zero_shot_accuracy,
)


@pytest.fixture(scope="module")
def digits():
    images, labels = handwriting()
    return images[:297], labels[:297]  # the bold ones


def test_captions_of_real_digits_are_followed_by_them(digits):
    images, labels = digits
    texts = captions(images, labels, torch.Generator().manual_seed(0))
    found = prompt_agreement(images, texts)
    assert set(found) == {"class_agreement", *(f"{name}_agreement" for name in ATTRIBUTES)}
    read = digit_logits(normalised(images)).argmax(1)
    named = torch.tensor([bool({str(n), w} & set(_words(t))) for n, w, t in _names(labels, texts)])
    share = (read == labels)[named].double().mean().item()
    assert found["class_agreement"] == pytest.approx(share, abs=1e-4)
    assert share > 0.85
    for name in ATTRIBUTES:  # where no class is named, that read counts, which may be wrong
        assert found[f"{name}_agreement"] > 0.95
    shifted = prompt_agreement(images, texts[1:] + texts[:1])
    assert shifted["class_agreement"] < 0.4


def _words(text):
    return text.replace(",", " ").replace(":", " ").split()


def _names(labels, texts):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return [(int(n), names[n], t) for n, t in zip(labels, texts, strict=True)]


def test_shares_are_counted_over_the_prompts_that_ask(digits):
    """With the limits of the digit that is asked for; by hand from the measured numbers."""
    images, _ = digits
    prompts = ["a wide four", "a four", "a narrow four", "leaning right: a 4"] * 10
    values = torch.stack(measure(images[:40]), 1)
    low, high = LIMITS[4, 2]
    wide, narrow = (values[:, 2] > high)[0::4].sum(), (values[:, 2] < low)[2::4].sum()
    right = (values[:, 1] > LIMITS[4, 1, 1])[3::4].double().mean()
    found = prompt_agreement(images[:40], prompts)
    assert set(found) == {"class_agreement", "width_agreement", "slant_agreement"}
    assert found["width_agreement"] == pytest.approx((wide + narrow).item() / 20, abs=1e-4)
    assert found["slant_agreement"] == pytest.approx(right.item(), abs=1e-4)


def test_without_a_digit_the_one_that_is_read_sets_the_limits(digits):
    images, _ = digits
    prompts = [f"a {WORDS['width', 1][0]} digit"] * len(images)
    read = digit_logits(normalised(images)).argmax(1)
    wide = measure(images).width > LIMITS[read, 2, 1]
    found = prompt_agreement(images, prompts)
    assert found == {"width_agreement": pytest.approx(wide.double().mean().item(), abs=1e-4)}


def test_prompts_are_one_an_image(digits):
    with pytest.raises(ValueError, match="prompts must be 297, one an image; got 1"):
        prompt_agreement(digits[0], ["a seven"])


class Pointing(nn.Module):
    """A CLIP whose images say where they point, and of which every text has an own direction."""

    def __init__(self, texts):
        super().__init__()
        self.text_encoder = nn.Module()
        self.text_encoder.position = nn.Parameter(torch.zeros(20, 1))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.temperature = torch.tensor(0.1)
        self.texts = {tuple(row): i for i, row in enumerate(tokenize(texts)[0].tolist())}

    def embed_texts(self, ids):
        eye = torch.eye(len(self.texts))
        return torch.stack([eye[self.texts[tuple(row)]] for row in ids.tolist()])

    def embed_images(self, images):
        return nn.functional.normalize(images.flatten(1)[:, : len(self.texts)], dim=1)


def pointing_at(*places, width=4):
    """Images that point most at the first text, less at the second, and so on."""
    images = torch.zeros(len(places), 1, 1, width)
    for image, order in zip(images, places, strict=True):
        for rank, place in enumerate(order):
            image[0, 0, place] = 4.0 - rank
    return images


def test_zero_shot_accuracy_is_a_share():
    prompts = ["a zero", "a one", "a two", "a three"]
    images = pointing_at((0,), (1,), (2, 3), (3, 2), (0, 1))
    clip = Pointing(prompts)
    labels = torch.tensor([0, 1, 2, 2, 1])
    assert zero_shot_accuracy(clip, images, labels, prompts) == pytest.approx(0.6)
    assert zero_shot_accuracy(clip, images, torch.tensor([0, 1, 2, 3, 0]), prompts) == 1


def test_recall_counts_captions_that_find_an_image_of_their_own():
    texts = ["a zero", "a one", "a two"]
    clip = Pointing(texts)
    # Nearest to "a zero": images 0, 1, ...; to "a one": 3, 1; to "a two": 2, 0.
    images = pointing_at((0,), (0, 1), (2,), (1,), width=3)
    images[0, 0, 0, 2] = 0.5
    captions_of = ["a zero", "a one", "a two", "a zero"]
    # "a zero" (0 and 3): nearest is 0, a hit. "a one": nearest is 3, no hit; then 1, a hit.
    found = retrieval_recall(clip, images, captions_of, ks=(1, 2, 4))
    assert found == {1: 0.75, 2: 1.0, 4: 1.0}
    # With "a two" and "a one" exchanged both find the other's image first.
    turned = ["a zero", "a two", "a one", "a zero"]
    assert retrieval_recall(clip, images, turned, ks=(1,)) == {1: 0.5}
