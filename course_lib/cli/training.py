"""From a recipe to a trained model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from course_lib.cli.drawing import check_solver, preview
from course_lib.cli.spaces import SampleSpace
from course_lib.cli.teaching import begin_with, find_teacher, in_stages, taught, teacher_pairs
from course_lib.denoisers import Denoiser
from course_lib.training import fit
from course_lib.training.recipe import build_model, build_objective

if TYPE_CHECKING:
    from jsonargparse import Namespace

__all__ = ["train_recipe"]


def train_recipe(config: Namespace, **overrides: Any) -> nn.Module:
    """Train what a recipe describes.

    Args:
        config: what `recipe_parser` read.
        overrides: options of `fit` that are set by the caller.

    Returns:
        The averaged model.

    Raises:
        ValueError: `fit` refuses an option, the data cannot be had, the teacher does not fit, or
            sample images are asked of a model that draws none.
    """
    options = {**config.fit.as_dict(), **overrides}
    space = SampleSpace.of(config)
    model = build_model(config.model.as_dict(), options["seed"])
    teacher = find_teacher(config, space)
    if teacher is not None:
        begin_with(model, teacher, config.teacher)
    options["objective"] = taught(build_objective(options["objective"]), teacher)
    check_solver(config.solver, config.scale)  # now, not when the training is done
    trainer = dict(options["trainer_options"] or {})
    callbacks = _callbacks(config, space, model, Path(options["checkpoint"] or "runs"))
    trainer["callbacks"] = [*trainer.get("callbacks", []), *callbacks]
    options["trainer_options"] = trainer
    if config.pairs:
        config.fit.checkpoint = options["checkpoint"]
        return fit(model, teacher_pairs(config, space, model, teacher), **options)
    x0, labels = space.examples("train")
    data = x0, labels if space.labels else None
    if config.stages:
        return in_stages(config, model, teacher, data, **options)
    return fit(model, data, **options)


def _callbacks(config: Namespace, space: SampleSpace, model: nn.Module, folder: Path) -> list[Any]:
    """What a run from a recipe does beside training: it notes the recipe, and shows samples."""
    from course_lib.training.checkpoint_io import NoteRecipe
    from course_lib.training.previews import SampleImages

    found: list[Any] = [NoteRecipe({"model": config.model.as_dict(), "images": space.note})]
    if config.sample_every:
        if not isinstance(model, Denoiser):
            raise ValueError(
                f"sample_every must be 0 for a {type(model).__name__}, which draws no images; "
                f"got {config.sample_every}"
            )
        space.prepare()
        how = {"scale": config.scale, "solver": config.solver, "steps": config.solver_steps}
        found.append(
            SampleImages(config.sample_every, partial(preview, space=space, **how), folder)
        )
    return found
