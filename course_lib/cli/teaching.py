"""A model that teaches another: its weights to begin with, and its samples to train on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_lib.cli.models import find_denoiser
from course_lib.cli.spaces import SampleSpace
from course_lib.denoisers import Denoiser
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.training.batches import Data
from course_lib.transport import ReflowTrainer

if TYPE_CHECKING:
    from jsonargparse import Namespace

__all__ = ["begin_with", "find_teacher", "teacher_pairs"]

SOLVER, BATCH = "dpm_solver_pp_2m", 200


def find_teacher(config: Namespace, space: SampleSpace) -> Denoiser | None:
    """The teacher of a recipe, guided if a scale is given; None if it has none.

    Raises:
        ValueError: it is not found, draws no samples or others than the recipe's, or a number of
            pairs is given without a teacher.
    """
    if config.pairs < 0:
        raise ValueError(f"pairs must be at least 0; got {config.pairs}")
    if config.teacher is None:
        if config.pairs:
            raise ValueError("pairs need a teacher that makes them: --teacher NAME")
        return None
    teacher, images = find_denoiser(config.teacher)
    theirs = SampleSpace.of(images)
    if (theirs.shape, theirs.labels) != (space.shape, space.labels):
        raise ValueError(
            f"teacher {config.teacher} has samples of shape {theirs.shape}, labels "
            f"{theirs.labels}; the recipe has {space.shape}, labels {space.labels}"
        )
    if config.teacher_scale == 1:
        return teacher
    if not space.labels:
        raise ValueError(f"teacher_scale must be 1 without labels; got {config.teacher_scale}")
    return ClassifierFreeGuidance(teacher, config.teacher_scale)


def begin_with(model: nn.Module, teacher: Denoiser, name: str) -> None:
    """Give the model the weights of its teacher.

    Raises:
        ValueError: they do not fit.
    """
    source = teacher.denoiser if isinstance(teacher, ClassifierFreeGuidance) else teacher
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the model must be built like its teacher {name}: {error}") from error


def teacher_pairs(config: Namespace, space: SampleSpace, model: Any, teacher: Any) -> Data:
    """Pairs of noise and the teacher's sample, kept in the folder of the run.

    Args:
        config: the recipe.
        space: what the samples are.
        model: the student, on the path Linear.
        teacher: what `find_teacher` returns.

    Raises:
        ValueError: model or teacher is on another path, or the folder holds other pairs.
    """
    trainer = ReflowTrainer(
        model,
        space.shape,
        conditions=partial(_labels, classes=space.classes) if space.labels else None,
        solver=SOLVER,
        steps=config.teacher_steps,
        batch_size=BATCH,
        seed=config.fit.seed,
        folder=Path(config.fit.checkpoint or "runs"),
        progress=config.fit.progress,
    )
    return trainer.generate_pairs(config.pairs, teacher).data


def _labels(n: int, *, generator: torch.Generator, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=generator)
