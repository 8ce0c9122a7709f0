"""`course-lib evaluate`: numbers that say how good a trained model is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.cli.measuring import SAMPLES, measure
from course_lib.cli.models import find_model
from course_lib.cli.parsing import new_parser
from course_lib.cli.sample import add_sampling, chosen
from course_lib.cli.spaces import SampleSpace
from course_lib.training.atomic import write_atomic

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["parser", "run"]

DESCRIPTION = """Measure a trained model on the test data of its data set.

  course-lib evaluate --checkpoint digits-ddpm
  course-lib evaluate --checkpoint mnist-ddpm-cfg --scale 2 --steps 10 --output metrics.json

Samples of digits are compared by the features of a classifier, those of latents once decoded:

class_agreement  share of samples that the classifier reads as the digit asked for
frechet_test     Frechet distance between the classifier's features of samples and of test images
frechet_floor    the same for as many training images in the place of samples
frechet_ratio    the first as a multiple of the second: 1 is as good as new real images

Points, and latents of a folder, are compared as they are:

sliced_w2        sliced Wasserstein distance between samples and test data
sliced_w2_floor  the same for as many training data in the place of samples
nll              nats a test sample costs, if the model has a density: -log p at the noise of t = 0
nll_floor        the same by the exact density, if there is one

An autoencoder is measured by the test images that it has encoded and decoded:

test_error       mean squared error of a number of an image
test_rate        nats in the latents of an image, beyond those of noise

For all that draws samples:

evaluations      evaluations of the network for each image; two a step where guidance is on
seconds          for the drawing of all samples, on this machine"""


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Which model, how to draw, and where to."""
    usage = "course-lib evaluate --checkpoint PATH_OR_NAME [options]"
    new = new_parser(DESCRIPTION, usage=usage)
    add_sampling(new, SAMPLES, "number of samples, at most that of the test data")
    new.add_argument("--output", type=Path, help="JSON file to write as well")
    return new


def run(config: Namespace) -> int:
    """Measure, print, and write.

    Raises:
        ValueError: the checkpoint is none, or the options do not fit it.
    """
    model, noted = find_model(config.checkpoint)
    metrics = measure(
        model, SampleSpace.of(noted | chosen(config)), n=config.num_samples,
        scale=config.scale, solver=config.solver, steps=config.steps, seed=config.seed,
        progress=True,
    )  # fmt: skip
    for name, value in metrics.items():
        print(f"{name:16} {value}")
    if config.output:
        found = {"checkpoint": config.checkpoint, **metrics}
        write_atomic(config.output, (json.dumps(found, indent=2) + "\n").encode())
    return 0
