"""`course-lib sample`: images or points from a trained model, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_lib.cli.drawing import SOLVERS, draw_samples
from course_lib.cli.models import find_denoiser
from course_lib.cli.parsing import new_parser
from course_lib.cli.spaces import SampleSpace
from course_lib.data import tokenize
from course_lib.plotting.images import tile
from course_lib.plotting.points import points_picture
from course_lib.plotting.render import encoded
from course_lib.training.atomic import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_sampling", "chosen", "parser", "run", "write_images", "write_points"]

DESCRIPTION = """Draw with a trained model: a grid of images, single files, or a picture of points.

  course-lib sample --checkpoint digits-ddpm --output digits.png
  course-lib sample --checkpoint mnist-ddpm-cfg --label 4 --num-samples 16 --scale 2 \\
      --solver dpm_solver_pp_2m --steps 20 --output four.png
  course-lib sample --checkpoint mnist-ddpm-cfg --label 0 1 2 --individual --output a/b.png
  course-lib sample --checkpoint mnist-text --prompt "a bold seven" --scale 2 --output seven.png"""

SIDE = 64  # pixels of an image in the grid, at least
IMAGES, POINTS = 16, 2000


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Which model, which images, and where to."""
    new = new_parser(DESCRIPTION, usage="course-lib sample --checkpoint PATH_OR_NAME [options]")
    add_sampling(new, None, f"number of samples; {IMAGES}, or {POINTS:,} points, if left out")
    new.add_argument(
        "--label", type=int, nargs="+", help="class, or several in turn; only a model with classes"
    )
    new.add_argument("--negative-label", type=int, help="class to lead away from, with --label")
    new.add_argument("--prompt", nargs="+", help="text, or several in turn; only a model of texts")
    new.add_argument("--negative-prompt", help="text to lead away from, with --prompt")
    new.add_argument("--output", type=Path, default=Path("samples.png"), help="file to write")
    new.add_argument(
        "--individual", action="store_true", help="one file for each image: NAME-000.png, ..."
    )
    return new


def add_sampling(parser: ArgumentParser, samples: int | None, help: str) -> None:
    """Add the options that `sample` and `evaluate` share."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH_OR_NAME",
        help="a pretrained model, a folder of a training run, or a .safetensors file")  # fmt: skip
    add("--num-samples", type=int | None, default=samples, help=help)
    add("--autoencoder", help="autoencoder of latents; that of the training if left out")
    add(
        "--scale", type=float, default=1.0, help="guidance scale: 1 none, more is more of the class"
    )
    add("--solver", choices=tuple(SOLVERS), default="dpm_solver_pp_2m", help="solver")
    add("--steps", type=int, default=20, help="steps of the solver")
    add("--seed", type=int, default=0, help="decides the noise")


def run(config: Namespace) -> int:
    """Draw and write.

    Raises:
        ValueError: the checkpoint is none, or the options do not fit it.
    """
    if config.output.suffix != ".png":
        raise ValueError(f"--output must end with .png; got {config.output}")
    model, noted = find_denoiser(config.checkpoint)
    space = SampleSpace.of(noted | chosen(config))
    space.prepare()
    if space.points and config.individual:
        raise ValueError(f"--individual needs images; {config.checkpoint} draws points")
    if config.num_samples is None:
        config.num_samples = POINTS if space.points else IMAGES
    labels, prompts = _labels(config, space), _prompts(config, space)
    drawn = draw_samples(
        model, space.shape, config.num_samples, labels=labels if prompts is None else prompts,
        negative=config.negative_label if prompts is None else config.negative_prompt,
        scale=config.scale, solver=config.solver, steps=config.steps, seed=config.seed,
        progress=True,
    )  # fmt: skip
    if space.points:
        print(write_points(drawn, labels, config.output))
    else:
        print(write_images(space.decode(drawn), config.output, config.individual))
    return 0


def chosen(config: Namespace) -> dict[str, Any]:
    """What the options of `add_sampling` say of the samples, over what was noted."""
    return {} if config.autoencoder is None else {"autoencoder": config.autoencoder}


def _labels(config: Namespace, space: SampleSpace) -> Tensor | None:
    """The label of each sample, or None."""
    if config.label is None:
        if config.negative_label is not None or (config.scale != 1 and config.prompt is None):
            raise ValueError("--scale and --negative-label need a --label to lead to")
        return None
    if not space.labels:
        raise ValueError(
            f"--label needs a conditional model; {config.checkpoint} was trained without labels"
        )
    for label in (*config.label, config.negative_label or 0):
        if not 0 <= label < space.classes:
            raise ValueError(f"--label must be 0 to {space.classes - 1}; got {label}")
    return torch.tensor(config.label)[torch.arange(config.num_samples) % len(config.label)]


def _prompts(config: Namespace, space: SampleSpace) -> list[str] | None:
    """The prompt of each sample, or None."""
    if config.prompt is None:
        if config.negative_prompt is None:
            return None
        raise ValueError("--negative-prompt needs a --prompt to lead to")
    if config.label is not None:
        raise ValueError("--prompt and --label exclude each other; a prompt may name the digit")
    if not space.captions:
        raise ValueError(
            f"--prompt needs a model of texts, such as mnist-text; {config.checkpoint} is none"
        )
    negative = () if config.negative_prompt is None else (config.negative_prompt,)
    tokenize([*config.prompt, *negative])  # what is wrong with them is told before the drawing
    return [config.prompt[i % len(config.prompt)] for i in range(config.num_samples)]


def write_points(points: Tensor, labels: Tensor | None, output: Path) -> str:
    """Write a PNG file of points.

    Args:
        points: shape (N, 2).
        labels: their classes, shape (N,), or None.
        output: the file.

    Returns:
        What was written, in words.

    Raises:
        OSError: the file cannot be written.
    """
    _write(points_picture(points, labels), output)
    return f"{output}: {len(points)} points"


def write_images(images: Tensor, output: Path, individual: bool = False) -> str:
    """Write PNG files.

    Args:
        images: shape (N, C, H, W) in [-1, 1].
        output: file of the grid; single images are numbered, and in their own size.
        individual: write single images.

    Returns:
        What was written, in words.

    Raises:
        OSError: a file cannot be written.
    """
    if individual:
        for i, image in enumerate(images):
            path = output.with_stem(f"{output.stem}-{i:03d}")
            _write(tile(image[None], 1, gap=0), path, "RGB" if len(image) == 3 else "L")
        return f"{output.with_stem(output.stem + '-000')} and the next: {len(images)} images"
    zoom = -(-SIDE // images.shape[-1])
    columns = math.ceil(math.sqrt(len(images)))
    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    _write(tile(large, columns, gap=4), output)
    return f"{output}: {len(images)} images"


def _write(pixels: np.ndarray, path: Path, mode: str = "RGBA") -> None:
    from PIL import Image

    write_atomic(path, encoded(Image.fromarray(pixels).convert(mode)))
