"""The one-step models of MNIST: what they were made for, drawn here, and as the book stores it."""

import json
from pathlib import Path

import pytest
import torch

from course_lib.distillation import consistency
from course_lib.evaluation import class_agreement, digit_logits
from course_lib.pretrained import load_pretrained, pretrained_info
from course_lib.samplers import sample

STORED = Path(__file__).parents[2] / "book" / "_data" / "distillation.json"


@pytest.mark.parametrize(
    ("name", "solver", "steps", "least"),
    [
        ("mnist-consistency", consistency, 1, 0.97),
        ("mnist-consistency", consistency, 2, 0.985),
        ("mnist-progressive", "ddim", 1, 0.97),
    ],
)
def test_digits_have_the_class_that_was_asked_for(name, solver, steps, least):
    """Of 2,000: of fewer, the share at two steps could be below 98.5 % by chance."""
    model, labels, right = load_pretrained(name), torch.arange(500) % 10, 0.0
    for seed in range(4):
        images = sample(model, (500, 1, 32, 32), solver=solver, steps=steps, cond=labels, seed=seed)
        right += class_agreement(digit_logits(images), labels) / 4
    assert right >= least


def test_two_steps_come_close_to_fifty_evaluations_of_the_teacher():
    rows = {
        (r["name"], round(r["evaluations"])): r for r in json.loads(STORED.read_text())["mnist"]
    }
    teacher, student = rows["mnist-flow-cfg", 50], rows["mnist-consistency", 2]
    assert teacher["samples"] == student["samples"] == 2000
    assert student["frechet_test"] <= 1.5 * teacher["frechet_test"]
    assert student["class_agreement"] >= 0.985
    assert rows["mnist-consistency", 1]["class_agreement"] >= 0.97
    assert rows["mnist-progressive", 1]["class_agreement"] >= 0.97


def test_what_the_manifest_says_is_what_the_book_shows():
    rows = json.loads(STORED.read_text())["mnist"]
    for name in ("mnist-consistency", "mnist-progressive"):
        found = pretrained_info(name)["metrics"]
        (row,) = (r for r in rows if r["name"] == name and r["steps"] == found["steps"])
        for key in ("frechet_test", "class_agreement", "samples"):
            assert row[key] == pytest.approx(found[key], rel=0.005), key
