"""`course-lib evaluate`: numbers that say how good a trained model is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.cli.measuring import SAMPLES, measure
from course_lib.cli.models import find_model
from course_lib.cli.parsing import new_parser
from course_lib.cli.sample import add_sampling
from course_lib.training.atomic import write_atomic

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["parser", "run"]

DESCRIPTION = """Measure a trained model on the test images of its data set.

  course-lib evaluate --checkpoint digits-ddpm
  course-lib evaluate --checkpoint mnist-ddpm-cfg --scale 2 --steps 10 --output metrics.json

class_agreement  share of samples that a classifier reads as the digit asked for
frechet_test     Frechet distance between the classifier's features of samples and of test images
frechet_floor    the same for as many training images in the place of samples
frechet_ratio    the first as a multiple of the second: 1 is as good as new real images
evaluations      evaluations of the network for each image; two a step where guidance is on
seconds          for the drawing of all samples, on this machine"""


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Which model, how to draw, and where to."""
    usage = "course-lib evaluate --checkpoint PATH_OR_NAME [options]"
    new = new_parser(DESCRIPTION, usage=usage)
    add_sampling(new, samples=SAMPLES)
    new.add_argument("--output", type=Path, help="JSON file to write as well")
    return new


def run(config: Namespace) -> int:
    """Measure, print, and write.

    Raises:
        ValueError: the checkpoint is none, or the options do not fit it.
    """
    model, images = find_model(config.checkpoint)
    metrics = measure(
        model, **images, n=config.num_samples, scale=config.scale, solver=config.solver,
        steps=config.steps, seed=config.seed, progress=True,
    )  # fmt: skip
    for name, value in metrics.items():
        print(f"{name:16} {value}")
    if config.output:
        found = {"checkpoint": config.checkpoint, **metrics}
        write_atomic(config.output, (json.dumps(found, indent=2) + "\n").encode())
    return 0
