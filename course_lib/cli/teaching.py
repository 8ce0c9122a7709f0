"""A model that teaches another: its weights to begin with, its samples, its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_lib.cli.models import find_denoiser
from course_lib.cli.spaces import SampleSpace
from course_lib.denoisers import Denoiser
from course_lib.distillation import (
    IntervalDenoiser,
    MeanFlowLoss,
    ProgressiveDistillation,
    ProgressiveLoss,
)
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.training.batches import Data
from course_lib.transport import ReflowTrainer

if TYPE_CHECKING:
    from jsonargparse import Namespace

__all__ = ["begin_with", "find_teacher", "in_stages", "taught", "teacher_pairs"]

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
        if isinstance(model, IntervalDenoiser):
            model.begin_with(source)
        else:
            model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the model must be built like its teacher {name}: {error}") from error


def taught(objective: Callable[..., Any], teacher: Denoiser | None) -> Callable[..., Any]:
    """The objective, with the teacher in the field that it has for one; so for one that it wraps.

    Raises:
        ValueError: the objective cannot do without, and there is none.
    """
    if not is_dataclass(objective) or isinstance(objective, type):
        return objective
    if hasattr(objective, "objective"):
        return replace(objective, objective=taught(objective.objective, teacher))
    if not hasattr(objective, "teacher"):
        return objective
    if teacher is None and not isinstance(objective, MeanFlowLoss):
        raise ValueError(f"{type(objective).__name__} needs a teacher: --teacher NAME")
    return replace(objective, teacher=teacher)


def in_stages(
    config: Namespace, model: Any, teacher: Denoiser | None, data: Data, **options: Any
) -> nn.Module:
    """Progressive distillation: the last student of the recipe's stages.

    Args:
        config: the recipe.
        model: the student to begin with.
        teacher: what `find_teacher` returns.
        data: as for `fit`.
        options: of `fit`; the objective is that of progressive distillation.

    Raises:
        ValueError: there is no teacher, the objective is another, the stages do not halve, or
            `fit` refuses an option.
        KeyboardInterrupt: Ctrl-C stopped a stage; the same command goes on from there.
    """
    if teacher is None or not isinstance(options.pop("objective"), ProgressiveLoss):
        raise ValueError("stages need a --teacher, and the objective ProgressiveLoss")
    own = {name: options.pop(name) for name in ("seed", "progress")}
    folder = Path(options.pop("checkpoint") or "runs")
    run = ProgressiveDistillation(teacher, student=model, folder=folder, **own)
    return run.run(data, config.stages, **options)[-1]


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
