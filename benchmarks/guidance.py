"""Quality and diversity against the guidance scale, on MNIST: the chapter's curve.

Samples of the class-conditional flow, compared with as many test images in the features of a
classifier that had no part in making them. The floor is what as many training images reach.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib import ClassifierFreeGuidance
from course_lib.data import mnist
from course_lib.evaluation import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
    precision_recall,
)
from course_lib.pretrained import load_pretrained
from course_lib.samplers import sample

MODEL, SOLVER, STEPS = "mnist-flow-cfg", "dpm_solver_pp_2m", 20
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def quality(images: Tensor, labels: Tensor, reference: Tensor) -> dict[str, float]:
    """Return agreement, Frechet distance, precision and recall, of images as they are shown."""
    images = images.clamp(-1, 1)
    features = digit_features(images)
    precision, recall = precision_recall(reference, features)
    return {
        "agreement": class_agreement(digit_logits(images), labels),
        "frechet": frechet_distance(features, reference),
        "precision": precision,
        "recall": recall,
    }


@torch.no_grad()
def measure(quick: bool) -> dict[str, Any]:
    """Return one list for each number, along the scales, and the floor."""
    n, scales = (100, (1.0, 4.0)) if quick else (1000, SCALES)
    model, labels = load_pretrained(MODEL), torch.arange(n) % 10
    reference = digit_features(mnist("test")[0][:n])
    rows = []
    for scale in tqdm(scales, unit="scale"):
        guided = ClassifierFreeGuidance(model, scale)
        images = sample(guided, (n, 1, 32, 32), solver=SOLVER, steps=STEPS, cond=labels)
        rows.append(quality(images, labels, reference))
    x, y = (part[:n] for part in mnist("train"))
    curves = {key: [row[key] for row in rows] for key in rows[0]}
    options = {"model": MODEL, "solver": SOLVER, "steps": STEPS, "samples": n}
    return {**options, "scales": list(scales), **curves, "floor": quality(x, y, reference)}


def table(results: dict[str, Any]) -> str:
    """Return one line for each scale, and the floor."""
    keys = tuple(results["floor"])
    lines = ["scale".ljust(10) + "".join(f"{key:>12}" for key in keys)]
    rows = [*zip(*(results[key] for key in keys), strict=True), results["floor"].values()]
    for name, row in zip([*results["scales"], "training"], rows, strict=True):
        lines.append(f"{name!s:10}" + "".join(f"{value:12.3f}" for value in row))
    return "\n".join(lines)
