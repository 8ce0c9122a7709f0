"""What is measured of a trained model: by `evaluate`, and for the manifest by `train`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.cli.drawing import draw_images
from course_lib.denoisers import Denoiser
from course_lib.evaluation.features import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
)
from course_lib.nets.noisy_classifier import NoisyDigitClassifier
from course_lib.training.recipe import NATIVE, recipe_data, resized

__all__ = ["SAMPLES", "measure"]

SAMPLES = 2000


def measure(
    model: nn.Module,
    data: str,
    *,
    image_size: int | None = None,
    channels: int = 1,
    labels: bool = False,
    n: int = SAMPLES,
    scale: float = 1.0,
    solver: str = "dpm_solver_pp_2m",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Quality of a trained model on the test images of its data set.

    Args:
        model: a classifier of digits, or a denoiser of their images.
        data: "digits" or "mnist".
        image_size: side of its images in pixels; that of the data set if left out.
        channels: their channels, 1 or 3.
        labels: whether a denoiser takes labels as condition.
        n: number of samples of a denoiser (at most as many as there are test images).
        scale: guidance scale; only with labels.
        solver: name of the solver.
        steps: its number of steps.
        seed: decides the noise.
        progress: show a bar, if the output is a terminal.

    Returns:
        For a classifier its accuracy; for one of noisy images, at several times. For a denoiser
        the Fréchet distance between its samples and the test images; its floor, that between as
        many training and the test images; their ratio; how it was sampled, with how many
        evaluations of the network for each image and in how many seconds; and with labels the
        share of samples that the classifier reads as asked for.

    Raises:
        ValueError: an argument is out of range, or a scale is given for a model without labels.
    """
    test, classes = recipe_data(data, "test", image_size, channels)
    if isinstance(model, NoisyDigitClassifier):
        return _accuracy_in_noise(model, test, classes)
    if not isinstance(model, Denoiser):
        return {"test_accuracy": round(class_agreement(digit_logits(test, model), classes), 4)}
    if scale != 1 and not labels:
        raise ValueError(f"scale must be 1 for a model without labels; got {scale}")
    n = min(n, len(test))
    wanted = classes[:n] if labels else None
    how = {"scale": scale, "solver": solver, "steps": steps}
    options = {"labels": wanted, "seed": seed, "progress": progress, **how}
    samples, cost = _timed(model, tuple(test.shape[1:]), n, **options)
    train = recipe_data(data, "train", image_size, channels)[0][:n]
    samples, test, train = (_seen(images, data) for images in (samples, test, train))
    return {**_quality(samples, test, train, wanted), "samples": n, **how, **cost}


def _timed(
    model: Denoiser, shape: tuple[int, ...], n: int, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    """Samples, and what they cost: evaluations of the network for each, and seconds for all."""
    net = getattr(model, "net", None)
    rows: list[int] = []
    counted = net if isinstance(net, nn.Module) else nn.Identity()
    start = time.perf_counter()
    with counted.register_forward_pre_hook(lambda _, given: rows.append(len(given[0]))):
        samples = draw_images(model, shape, n, **options)
    seconds = time.perf_counter() - start
    return samples, {"evaluations": sum(rows) / n, "seconds": round(seconds, 2)}


def _accuracy_in_noise(
    model: NoisyDigitClassifier, test: Tensor, classes: Tensor
) -> dict[str, float]:
    """Accuracy on clean test images, and at three times along the path."""
    device = next(model.parameters()).device
    eps = torch.empty_like(test).normal_(generator=torch.Generator().manual_seed(0))
    found = {}
    for level in (0.0, 0.25, 0.5, 0.75):
        t = torch.full((len(test),), level)
        noisy = zip(model.path.sample(test, t, eps).split(512), t.split(512), strict=True)
        with torch.no_grad():
            logits = torch.cat([model(xt.to(device), s.to(device)) for xt, s in noisy])
        name = f"test_accuracy_at_{level}" if level else "test_accuracy"
        found[name] = round(class_agreement(logits, classes), 4)
    return found


def _quality(
    samples: Tensor, test: Tensor, train: Tensor, wanted: Tensor | None
) -> dict[str, float]:
    reference = digit_features(test)
    distance, floor = (
        frechet_distance(digit_features(images), reference) for images in (samples, train)
    )
    found = {
        "frechet_test": round(distance, 4),
        "frechet_floor": round(floor, 4),
        "frechet_ratio": round(distance / floor, 4),
    }
    if wanted is not None:
        found["class_agreement"] = round(class_agreement(digit_logits(samples), wanted), 4)
    return found


def _seen(images: Tensor, data: str) -> Tensor:
    """The images as the classifier sees them: grey, and in a size that it knows."""
    grey = images.mean(1, keepdim=True)
    known = {NATIVE[data]} | ({32} if data == "mnist" else set())
    return grey if images.shape[-1] in known else resized(grey, NATIVE[data])
