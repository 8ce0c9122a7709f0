"""Recipes: a model, its data and the options of `fit`, in one YAML file.

jsonargparse reads them: every class is named by its import path and built from its own signature,
and every field can be overridden on the command line.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_lib.training.fit import fit

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["build_model", "recipe_data", "recipe_parser", "recipe_path", "recipes", "train"]

DATA = ("digits", "mnist")


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


def recipe_parser(recipe: Path | None = None) -> ArgumentParser:
    """Parser of the fields of a recipe: model, data, labels, and `fit.*` from `fit` itself.

    Args:
        recipe: file whose values are the defaults.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False, default_config_files=[str(recipe)] if recipe else []
    )
    parser.add_argument("--model", type=nn.Module, required=True, help="what to train")
    parser.add_argument("--data", choices=DATA, default="digits", help="data set")
    parser.add_argument("--labels", type=bool, default=False, help="give the labels as cond")
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
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=nn.Module, required=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return parser.instantiate(parser.parse_object({"model": spec})).model
        except ArgumentError as error:
            raise ValueError(f"cannot build model {spec}: {error}") from error


def recipe_data(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set.

    Args:
        name: "digits" or "mnist".
        split: "train" or "test".

    Returns:
        Images of shape (N, 1, H, W) and labels of shape (N,).
    """
    from course_lib import data

    return getattr(data, name)(split)


def train(config: Namespace, **overrides: Any) -> nn.Module:
    """Train what a recipe describes.

    Args:
        config: what `recipe_parser` read.
        overrides: options of `fit` that are set by the caller.

    Returns:
        The averaged model.
    """
    options = {**config.fit.as_dict(), **overrides}
    model = build_model(config.model.as_dict(), options["seed"])
    images, labels = recipe_data(config.data, "train")
    return fit(model, (images, labels if config.labels else None), **options)
