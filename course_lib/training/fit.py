"""`fit`: the hand-written loop of the first chapter, grown up.

It resumes after a kill with the same weights, bit for bit on the CPU; it stops cleanly at Ctrl-C
and at a loss that is not finite; and it leaves the global random state as it was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from course_lib.objectives import denoising_loss
from course_lib.training.batches import Batches, Data
from course_lib.training.guards import stop_at_interrupt, undisturbed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from course_lib.training.engine import Engine

__all__ = ["fit"]

Model = TypeVar("Model", bound=nn.Module)
Objective = Callable[..., Any]  # not Tensor: a recipe may name a class whose instances are called
SCHEDULES = ("constant", "cosine", "step")
OURS = ("max_steps", "max_epochs", "plugins", "logger", "accumulate_grad_batches")


def fit(
    denoiser: Model,
    data: Data,
    *,
    objective: Objective = denoising_loss,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    ema: float = 0.999,
    seed: int = 0,
    progress: bool = True,
    logger: Any = None,
    checkpoint: str | Path | None = None,
    resume: Literal["auto", False] = "auto",
    lr_schedule: Literal["constant", "cosine", "step"] = "constant",
    lr_step: int = 1000,
    lr_gamma: float = 0.1,
    grad_clip: float | None = 1.0,
    save_every: int = 500,
    trainer_options: dict[str, Any] | None = None,
) -> Model:
    """Train a denoiser with Adam and return the moving average of its weights.

    Batch and noise of step n are a function of (seed, n) alone.

    Args:
        denoiser: any module with parameters; it is trained in place.
        data: x0 of shape (N, ...); a tuple (x0, cond); or a sampler, called as
            `data(n, generator=generator)`, that returns one of the two (endless data).
        objective: called as `objective(denoiser, x0, cond, generator=generator)`; returns a scalar.
            One that takes the keyword `progress` is given `progress=step / steps`, in [0, 1), too.
        steps: number of optimizer steps in all, those of a resumed run included.
        batch_size: examples of a step, over all processes.
        lr: learning rate of Adam.
        ema: decay of the moving average of the weights, in [0, 1); it starts lower, at
            (1 + n) / (10 + n) after n steps. 0 returns a copy of the last weights.
        seed: decides batches, times, noise and dropout. (The first weights are the caller's.)
        progress: show a progress bar.
        logger: None, "csv", "tensorboard", "wandb", or a Lightning logger. The first three write
            into the folder `checkpoint`, or into `runs` where there is none.
        checkpoint: folder for checkpoints; None keeps none.
        resume: "auto" goes on from the newest undamaged checkpoint of the folder, if there is one;
            False removes those that are there and starts anew.
        lr_schedule: "constant"; "cosine" (linear warm-up over a twentieth of the steps, then half
            a cosine down to 0); or "step".
        lr_step: with the schedule "step", number of steps after which the rate falls, again and
            again.
        lr_gamma: with the schedule "step", the factor by which it falls.
        grad_clip: largest norm of the gradient; None for no clipping.
        save_every: number of steps from one checkpoint to the next; the last two are kept.
        trainer_options: more options of `lightning.Trainer`, such as
            `{"precision": "bf16-mixed", "devices": 2, "strategy": "ddp"}`. The strategy "fsdp"
            splits the weights over the processes; `denoiser` then stays split.

    Returns:
        The averaged model, whole and in evaluation mode. Its attribute `losses` holds the loss of
        each step, float32 of shape (steps,).

    Raises:
        TypeError: data is none of the three forms.
        ValueError: an argument is out of range, or the folder's checkpoint belongs to another
            model, data set, seed or set of options.
        FloatingPointError: the loss or its gradient is not finite. `denoiser` then holds the
            weights before that step.
        OSError: a checkpoint cannot be written (disk full); the one before it is intact.

    Warns:
        UserWarning: stopped by Ctrl-C, at which step, and how to go on; or a damaged checkpoint was
            passed over.
    """
    given = dict(locals())
    _check(denoiser, given)
    folder = None if checkpoint is None else Path(checkpoint)
    with undisturbed(denoiser):
        batches = Batches(data, batch_size, seed)
        engine = _engine(denoiser, batches, objective, _config(given), folder, save_every)
        trainer, whole = _trainer(denoiser, steps, progress, logger, folder, trainer_options)
        _run(trainer, engine, _start(engine, folder, resume, steps), folder)
    return _averaged(engine, denoiser, whole)


def _config(given: dict[str, Any]) -> dict[str, Any]:
    """The options that shape the result."""
    names = ["steps", "lr", "ema", "lr_schedule", "grad_clip"]
    if given["lr_schedule"] == "step":
        names += ["lr_step", "lr_gamma"]
    return {name: given[name] for name in names}


def _engine(*arguments: Any) -> Engine:
    """The engine; Lightning is imported here, when it is needed."""
    from course_lib.training.engine import Engine

    return Engine(*arguments)


def _trainer(denoiser: Model, *arguments: Any) -> tuple[Trainer, Model | None]:
    """The Trainer, and a copy of the model if its weights are about to be split."""
    from course_lib.training.trainer import build_trainer, splits_weights

    trainer = build_trainer(*arguments)
    return trainer, copy.deepcopy(denoiser) if splits_weights(trainer) else None


def _check(model: nn.Module, values: dict[str, Any]) -> None:
    clip, options = values["grad_clip"], values["trainer_options"] or {}
    rules = {
        "steps": ("at least 1", values["steps"] >= 1),
        "batch_size": ("at least 1", values["batch_size"] >= 1),
        "save_every": ("at least 1", values["save_every"] >= 1),
        "lr": ("positive", values["lr"] > 0),
        "ema": ("in [0, 1)", 0 <= values["ema"] < 1),
        "grad_clip": ("positive or None", clip is None or clip > 0),
        "resume": ('"auto" or False', values["resume"] in ("auto", False)),
        "lr_schedule": (f"one of {SCHEDULES}", values["lr_schedule"] in SCHEDULES),
        "lr_step": ("at least 1", values["lr_step"] >= 1),
        "lr_gamma": ("positive", values["lr_gamma"] > 0),
        "trainer_options": (f"without {', '.join(OURS)}", not {*OURS} & {*options}),
    }
    for name, (allowed, ok) in rules.items():
        if not ok:
            raise ValueError(f"{name} must be {allowed}; got {values[name]!r}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"denoiser {type(model).__name__} has no parameters to train")


def _start(engine: Engine, folder: Path | None, resume: Any, steps: int) -> Path | None:
    """Find the checkpoint to go on from, and refuse one of another run."""
    from course_lib.training import checkpoints

    if folder is None:
        return None
    if resume is False:
        checkpoints.clear(folder)
    path = checkpoints.newest(folder)
    if path is None:
        return None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    other = [
        f"{name} is {value!r} here and {stored['config'].get(name)!r} there"
        for name, value in engine.fingerprint().items()
        if stored["config"].get(name) != value
    ]
    if stored["global_step"] > steps:
        other.append(f"steps is {steps} here and {stored['global_step']} are done there")
    if other:
        raise ValueError(
            f"checkpoint {path} is of another run: {'; '.join(other)}. "
            "Give another folder, or resume=False (--resume false) to start anew"
        )
    return path


def _stopped(trainer: Trainer, folder: Path | None) -> str:
    on = (
        "the same call goes on from there"
        if folder
        else "give a checkpoint folder to be able to go on"
    )
    return f"fit was interrupted after step {trainer.global_step} of {trainer.max_steps}; {on}"


def _run(trainer: Trainer, engine: Engine, start: Path | None, folder: Path | None) -> None:
    """Train; say so if Ctrl-C ended it early."""
    with stop_at_interrupt(engine):
        trainer.fit(engine, ckpt_path=start)
    if trainer.should_stop and trainer.global_step < trainer.max_steps:
        warnings.warn(_stopped(trainer, folder), stacklevel=3)


def _averaged(engine: Engine, denoiser: Model, whole: Model | None) -> Model:
    """The averaged model; if it was split over processes, as a copy that is not."""
    averaged: Any = engine.averaged.module
    if whole is not None:
        from course_lib.training.sharding import gathered

        whole.load_state_dict(gathered(averaged))
        averaged = whole
    averaged.to(next(denoiser.parameters()).device)
    for mine, live in zip(averaged.parameters(), denoiser.parameters(), strict=True):
        mine.requires_grad_(live.requires_grad)
    averaged.losses = torch.tensor(engine.losses)
    return averaged.eval()
