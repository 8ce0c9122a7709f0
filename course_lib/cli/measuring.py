"""What is measured of a trained model: by `evaluate`, and for the manifest by `train`."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.cli.drawing import draw_samples
from course_lib.cli.spaces import SampleSpace
from course_lib.data import DIGITS, TOYS, captions
from course_lib.denoisers import Denoiser
from course_lib.evaluation import sliced_wasserstein2
from course_lib.evaluation.features import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
)
from course_lib.evaluation.prompts import (
    prompt_agreement,
    retrieval_recall,
    zero_shot_accuracy,
)
from course_lib.flows import ScoreFlowNetwork
from course_lib.nets.clip import CLIP
from course_lib.nets.noisy_classifier import NoisyDigitClassifier
from course_lib.nets.vae import ConvVAE, divergence
from course_lib.training.recipe import NATIVE, recipe_data, resized

__all__ = ["SAMPLES", "measure"]

Wanted = Tensor | list[str] | None
SAMPLES = 2000
BATCH = 500


def measure(
    model: nn.Module,
    space: SampleSpace,
    *,
    n: int = SAMPLES,
    scale: float = 1.0,
    solver: str = "dpm_solver_pp_2m",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Quality of a trained model on the test part of its data.

    Args:
        model: a classifier of digits, an autoencoder, or a denoiser.
        space: its data, and what its samples are.
        n: number of samples of a denoiser (at most as many as there are test data).
        scale: guidance scale; only with labels.
        solver: name of the solver.
        steps: its number of steps.
        seed: decides the noise.
        progress: show a bar, if the output is a terminal.

    Returns:
        For a classifier its accuracy; for one of noisy images, at several times. For a CLIP its
        zero-shot accuracy, and how well it finds images by their captions. For an
        autoencoder its error and rate, and how good its reconstructions are as samples. For a
        denoiser how good samples are, how they were drawn, with how many evaluations of the model
        for each and in how many seconds. Images of digits are judged by the Fréchet distance to
        the test images, its floor (that of as many training images), their ratio, and with labels
        the share that the classifier reads as asked for; with captions, the share that has each
        attribute asked for as well. Points, and latents that no digits are
        made of, are judged by the sliced Wasserstein distance and its floor. A score flow of
        points or latents is asked for the likelihood of the test data as well.

    Raises:
        ValueError: an argument is out of range, or a scale is given for a model without labels.
    """
    test, classes = space.load("test")
    if isinstance(model, CLIP):
        return _contrast(model, test, classes)
    if isinstance(model, NoisyDigitClassifier):
        return _accuracy_in_noise(model, test, classes)
    if isinstance(model, ConvVAE):
        return _reconstruction(model, space, test, classes)
    if not isinstance(model, Denoiser):
        return {"test_accuracy": round(class_agreement(digit_logits(test, model), classes), 4)}
    if scale != 1 and not space.labels:
        raise ValueError(f"scale must be 1 for a model without labels; got {scale}")
    n, steps = min(n, len(test)), 1 if solver == "direct" else steps
    wanted: Wanted = classes[:n] if space.labels else None
    if space.captions:
        wanted = _told(test[:n], classes[:n])
    how = {"scale": scale, "solver": solver, "steps": steps}
    options = {"labels": wanted, "seed": seed, "progress": progress, **how}
    samples, cost = _timed(model, space.shape, n, **options)
    return {**_judged(model, space, samples, wanted), "samples": n, **how, **cost}


def _told(images: Tensor, labels: Tensor) -> list[str]:
    """A caption of each image, other than those of the training."""
    return captions(images, labels, torch.Generator().manual_seed(2))


def _contrast(model: CLIP, test: Tensor, classes: Tensor) -> dict[str, float]:
    """Zero-shot accuracy on varied test digits and on MNIST's own; recall among a thousand."""
    prompts = [f"a {word}" for word in DIGITS]
    plain, _ = recipe_data("mnist", "test", model.image_size)
    few = test[:1000]
    recall = retrieval_recall(model, few, _told(few, classes[:1000]))
    return {
        "zero_shot_accuracy": round(zero_shot_accuracy(model, plain, classes, prompts), 4),
        "zero_shot_accuracy_varied": round(zero_shot_accuracy(model, test, classes, prompts), 4),
        **{f"recall_at_{k}": round(share, 4) for k, share in recall.items()},
    }


def _judged(
    model: Denoiser, space: SampleSpace, samples: Tensor, wanted: Wanted
) -> dict[str, float]:
    """How good samples are, and the likelihood of the test data."""
    if not samples.isfinite().all():
        raise ValueError("samples are not finite: try more steps, or a scale nearer to 1")
    found = {}
    if not isinstance(wanted, list) and (space.encoded or space.points):
        found = _likelihood(model, space, len(samples), wanted)
        if space.data not in NATIVE:
            return found | _distance(space, samples, wanted)
    return found | _quality(space, space.decode(samples), wanted)


def _timed(
    model: Denoiser, shape: tuple[int, ...], n: int, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    """Samples, and what they cost: evaluations of the model for each, and seconds for all."""
    predict, rows = model.predict, []

    def counted(xt: Tensor, *args: Any) -> Tensor:
        rows.append(len(xt))
        return predict(xt, *args)

    model.__dict__["predict"] = counted  # before the method of its class
    start = time.perf_counter()
    try:
        samples = draw_samples(model, shape, n, **options)
    finally:
        del model.__dict__["predict"]
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


@torch.no_grad()
def _reconstruction(
    model: ConvVAE, space: SampleSpace, test: Tensor, classes: Tensor
) -> dict[str, float]:
    """Error and rate on test images; reconstructions of training images, judged as samples."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)

    def through(images: Tensor) -> list[Tensor]:
        parts = [model(x.to(device), generator) for x in images.split(BATCH)]
        return [torch.cat(part).cpu() for part in zip(*parts, strict=True)]

    seen, *latent = through(test)
    samples, *_ = through(space.load("train")[0][:SAMPLES])
    return {
        "test_error": round((seen - test).square().mean().item(), 5),
        "test_rate": round(divergence(*latent).mean().item(), 2),
        **_agreement(space, seen, classes),
        **_quality(space, samples),
    }


@torch.no_grad()
def _likelihood(
    model: Denoiser, space: SampleSpace, n: int, labels: Tensor | None
) -> dict[str, float]:
    """Nats of test data, noised as p_0 is, and their floor where the density is known."""
    if not isinstance(model, ScoreFlowNetwork):
        return {}
    x = space.examples("test")[0][:n]
    eps = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(0))
    t = torch.zeros(n)
    xt, device = model.path.sample(x, t, eps), next(model.parameters()).device
    given = [None] * n if labels is None else labels.to(device).split(BATCH)
    rows = zip(xt.to(device).split(BATCH), t.to(device).split(BATCH), given, strict=False)
    nats = -torch.cat([model.log_prob(*row) for row in rows]).double().mean().item()
    toy = TOYS.get(space.data)
    if toy is None or toy.log_prob is None:
        return {"nll": round(nats, 4)}
    # The classes of a shape are equally likely, and do not overlap: p(x | c) is p(x) / p(c).
    known = math.log(space.classes) if labels is not None else 0.0
    return {"nll": round(nats, 4), "nll_floor": round(-toy.log_prob(x).mean().item() - known, 4)}


def _distance(space: SampleSpace, samples: Tensor, wanted: Tensor | None) -> dict[str, float]:
    """Sliced Wasserstein distance from the test data, and its floor."""
    n, (train, classes) = len(samples), space.examples("train")
    if wanted is not None and space.points:  # as many of each class as samples were asked for
        rows = [(classes == k).nonzero()[: int((wanted == k).sum())] for k in range(space.classes)]
        train = train[torch.cat(rows)[:, 0]]
    train, test = train[:n], space.examples("test")[0][:n]
    return {
        "sliced_w2": round(sliced_wasserstein2(samples, test), 4),
        "sliced_w2_floor": round(sliced_wasserstein2(train, test), 4),
    }


def _quality(space: SampleSpace, samples: Tensor, wanted: Wanted = None) -> dict[str, float]:
    """Fréchet distance from the test images, its floor, and the classes."""
    train, test = space.load("train")[0][: len(samples)], space.load("test")[0]
    sets = (_seen(images, space.data) for images in (samples, train, test))
    features, floor_features, reference = map(digit_features, sets)
    distance, floor = (frechet_distance(f, reference) for f in (features, floor_features))
    found = {
        "frechet_test": round(distance, 4),
        "frechet_floor": round(floor, 4),
        "frechet_ratio": round(distance / floor, 4) if floor > 0 else math.inf,
    }
    if isinstance(wanted, list):
        return found | prompt_agreement(samples, wanted)
    return found if wanted is None else found | _agreement(space, samples, wanted)


def _agreement(space: SampleSpace, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of the images that the classifier reads as their labels."""
    logits = digit_logits(_seen(images, space.data))
    return {"class_agreement": round(class_agreement(logits, labels), 4)}


def _seen(images: Tensor, data: str) -> Tensor:
    """The images as the classifier sees them: grey, and in a size that it knows."""
    grey = images.mean(1, keepdim=True)
    known = {NATIVE[data]} | ({32} if data == "mnist" else set())
    return grey if images.shape[-1] in known else resized(grey, NATIVE[data])
