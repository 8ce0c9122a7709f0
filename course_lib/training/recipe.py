"""Recipes: a model, its data and the options of `fit`, in one YAML file.

jsonargparse reads them: every class is named by its import path and built from its own signature,
and every field can be overridden on the command line.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from course_lib.training.fit import fit

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = [
    "CLASSES",
    "NATIVE",
    "build_model",
    "build_objective",
    "image_shape",
    "recipe_data",
    "recipe_parser",
    "recipe_path",
    "recipes",
    "resized",
]

NATIVE = {"digits": 8, "mnist": 28}
CLASSES = 10


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = Path(str(files("course_lib.training"))) / "recipes"
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """File of a recipe.

    Args:
        recipe: a name of `recipes()`, or the path of a YAML file.

    Raises:
        ValueError: there is no such recipe.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(files("course_lib.training"))) / "recipes" / f"{recipe}.yaml"
    if not path.is_file():
        raise ValueError(
            f"recipe must be one of {', '.join(recipes())} or a YAML file; got {recipe!r}"
        )
    return path


def recipe_parser(
    recipe: Path | None = None,
    add_flags: Callable[[ArgumentParser], None] = lambda _: None,
    **options: Any,
) -> ArgumentParser:
    """Parser of the fields of a recipe: model, data and its form, and `fit.*` from `fit` itself.

    Args:
        recipe: file whose values are the defaults.
        add_flags: adds more; they come before `fit.*` in the help.
        options: for the parser, such as its description.
    """
    from jsonargparse import ArgumentParser

    options["default_config_files"] = [str(recipe)] if recipe else []
    parser = ArgumentParser(exit_on_error=False, **options)
    # The type's help would list every module of PyTorch.
    parser.add_argument("--model", type=nn.Module, required=True, help=SUPPRESS)
    add = parser.add_argument_group("data and samples").add_argument
    add("--data", default="digits", help="data set, shape of points, or folder of latents")
    add(
        "--image-size", type=int | None, help="side of the images; that of the data set if left out"
    )
    add("--channels", type=int, default=1, help="1, or 3 for grey images in three equal channels")
    add("--autoencoder", type=str | None, help="in whose latents the model lives")
    add("--labels", type=bool, default=False, help="give the labels as condition")
    add("--captions", type=int, default=0, help="captions of each varied image of MNIST, as well")
    add("--teacher", type=str | None, help="model to begin with, a name or folder")
    add("--pairs", type=int, default=0, help="pairs of noise and sample that the teacher makes")
    add("--teacher-scale", type=float, default=1.0, help="guidance scale of its samples")
    add("--teacher-steps", type=int, default=20, help="steps of its solver")
    add("--stages", type=list[int], default=[], help="steps of each progressive student, halving")
    add("--sample-every", type=int, default=0, help="steps between sample images; 0: none")
    add("--scale", type=float, default=1.0, help="guidance scale of samples, with labels")
    add("--solver", default="dpm_solver_pp_2m", help="solver for samples and last measurement")
    add("--solver-steps", type=int, default=20, help="its number of steps")
    add_flags(parser)
    parser.add_function_arguments(fit, "fit", skip={"denoiser", "data"})
    return parser


def build_model(spec: dict[str, Any], seed: int = 0) -> nn.Module:
    """Build a module from its description.

    Args:
        spec: a dictionary with `class_path` and `init_args`.
        seed: decides the first weights; the global random state is left as it was.

    Returns:
        The module.

    Raises:
        ValueError: a class is not found or does not take these arguments.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built("model", nn.Module, spec)


def build_objective(spec: Any) -> Callable[..., Tensor]:
    """Build an objective from its description.

    Args:
        spec: a function; or a dictionary with `class_path` and `init_args`, of a class whose
            instances are called.

    Raises:
        ValueError: a class is not found or does not take these arguments.
    """
    return _built("objective", Callable[..., Any], spec)


def _built(name: str, kind: Any, spec: Any) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind, required=True)
    try:
        return parser.instantiate(parser.parse_object({name: spec}))[name]
    except ArgumentError as error:
        raise ValueError(f"cannot build {name} {spec}: {error}") from error


def image_shape(name: str, image_size: int | None = None, channels: int = 1) -> tuple[int, ...]:
    """Shape (C, H, W) of the images of a data set.

    Args:
        name: "digits" or "mnist".
        image_size: side of the images in pixels; that of the data set if left out.
        channels: 1 or 3.

    Raises:
        ValueError: an argument is none of these.
    """
    if name not in NATIVE:
        raise ValueError(f"data must be one of {', '.join(NATIVE)}; got {name!r}")
    size = NATIVE[name] if image_size is None else image_size
    if size < 1:
        raise ValueError(f"image_size must be at least 1; got {size}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3; got {channels}")
    return channels, size, size


def recipe_data(
    name: str, split: str, image_size: int | None = None, channels: int = 1
) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set.

    MNIST, 28x28, becomes 32x32 by a frame of two pixels of background. Other sizes are made of
    that by interpolation, antialiased; those of the digits, of their 8x8 pixels.

    Args:
        name: "digits" or "mnist".
        split: "train" or "test".
        image_size: side of the images in pixels; that of the data set if left out.
        channels: 1, or 3 for the grey images in three equal channels.

    Returns:
        Images of shape (N, C, H, W) in [-1, 1] and labels of shape (N,).

    Raises:
        ValueError: an argument is none of these.
    """
    from course_lib import data

    channels, size, _ = image_shape(name, image_size, channels)
    framed = {"size": 32} if name == "mnist" and size != NATIVE[name] else {}
    images, labels = getattr(data, name)(split, **framed)
    if images.shape[-1] != size:
        images = resized(images, size)
    return images.expand(-1, channels, -1, -1), labels


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) at another size, (N, C, size, size), antialiased."""
    return interpolate(images, (size, size), mode="bilinear", antialias=True)
