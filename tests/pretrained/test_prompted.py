"""The text-conditional model that ships, drawn and measured here: it does what prompts ask."""

from course_lib.data import DIGITS
from course_lib.evaluation import prompt_agreement
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.pretrained import load_pretrained
from course_lib.samplers import sample

ASKED = (
    "a bold {}", "a thin {}", "a {} leaning left", "a {} leaning right",
    "a wide {}", "a narrow {}", "a large {}", "a small {}",
)  # fmt: skip


def test_digits_and_attributes_are_as_asked():
    """240 prompts, 60 of each attribute; the manifest has 2,000, with all phrasings."""
    prompts = [phrase.format(word) for phrase in ASKED for word in DIGITS] * 3
    model = ClassifierFreeGuidance(load_pretrained("mnist-text"), 3.0)
    images = sample(model, (len(prompts), 1, 32, 32), cond=prompts, steps=12, seed=0)
    found = prompt_agreement(images.clamp(-1, 1), prompts)
    assert found["class_agreement"] >= 0.97
    assert min(found.values()) >= 0.9, found
    assert len(found) == 5
