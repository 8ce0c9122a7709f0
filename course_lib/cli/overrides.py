"""Short flags for the fields of a recipe that one sets most often."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from course_lib.cli.spaces import SampleSpace
from course_lib.data import TOYS
from course_lib.training.recipe import NATIVE

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_flags", "apply_flags"]


class Flag(NamedTuple):
    """A short flag, its type or choices, and the field that it sets; "" if it does more."""

    name: str
    kind: Any
    field: str
    help: str


SCHEDULES = ("constant", "cosine", "step")
LOGGERS = ("tensorboard", "wandb", "csv")
PRECISIONS = ("32", "16-mixed", "bf16-mixed")
TRAINING = (
    Flag("steps", int, "fit.steps", "number of optimizer steps"),
    Flag("epochs", float, "", "the same in passes over the data"),
    Flag("batch-size", int, "fit.batch_size", "examples of a step, over all processes"),
    Flag("lr", float, "fit.lr", "learning rate"),
    Flag("lr-schedule", SCHEDULES, "fit.lr_schedule", "of the learning rate"),
    Flag("lr-step", int, "fit.lr_step", "steps after which the rate falls (schedule step)"),
    Flag("lr-gamma", float, "fit.lr_gamma", "factor by which it falls (schedule step)"),
    Flag("seed", int, "fit.seed", "decides first weights, batches and noise"),
    Flag("patch-size", int, "", "side of the network's patches in pixels"),
)
FILES = (
    Flag("save-dir", str, "fit.checkpoint", "folder for checkpoints and weights (runs/RECIPE)"),
    Flag("save-every", int, "fit.save_every", "steps from one checkpoint to the next"),
    Flag("resume", Literal["auto", False], "fit.resume", "auto goes on from the last checkpoint"),
    Flag("logger", LOGGERS, "fit.logger", "where losses and sample images go"),
    Flag("progress", bool, "fit.progress", "show a bar"),
)
MACHINE = (
    Flag("precision", PRECISIONS, "precision", "32, or mixed with 16 bits"),
    Flag("accelerator", str, "accelerator", "cpu or gpu; the best there is if left out"),
    Flag("devices", int | str, "devices", "number of processes on this machine"),
    Flag("num-nodes", int, "num_nodes", "number of machines"),
    Flag("strategy", str, "strategy", "ddp or fsdp, with several processes"),
)
GROUPS = {"training": TRAINING, "files": FILES, "machine": MACHINE}


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags to the parser of a recipe."""
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            kind = {"choices" if isinstance(flag.kind, tuple) else "type": flag.kind}
            group.add_argument(f"--{flag.name}", default=None, help=flag.help, **kind)


def apply_flags(config: Namespace) -> None:
    """Write the flags that are given into the fields of the recipe.

    Raises:
        ValueError: flags exclude each other, or the network lacks what one of them sets.
    """
    for flag in (*TRAINING, *FILES):
        if flag.field and (value := _given(config, flag)) is not None:
            config[flag.field] = value
    machine = {flag.field: value for flag in MACHINE if (value := _given(config, flag)) is not None}
    if machine:
        config.fit.trainer_options = {**(config.fit.trainer_options or {}), **machine}
    if config.lr_schedule is None and {config.lr_step, config.lr_gamma} != {None}:
        config.fit.lr_schedule = "step"
    if config.epochs is not None:
        config.fit.steps = _steps(config)
    _fit_network(config)


def _given(config: Namespace, flag: Flag) -> Any:
    return config[flag.name.replace("-", "_")]


def _steps(config: Namespace) -> int:
    """Epochs as steps."""
    if config.steps is not None:
        raise ValueError("--epochs and --steps exclude each other: give one of them")
    if not config.epochs > 0:
        raise ValueError(f"--epochs must be positive; got {config.epochs}")
    examples = len(SampleSpace.of(config).load("train")[0])
    return math.ceil(config.epochs * examples / config.fit.batch_size)


def _fit_network(config: Namespace) -> None:
    """Give the network the form of its data, and the patches asked for."""
    for name, value in _form(config).items():
        _set(config, name, value)
    if config.patch_size is not None and not _set(config, "patch", config.patch_size):
        raise ValueError(f"--patch-size: {config.model.class_path} has no network with patches")


def _form(config: Namespace) -> dict[str, Any]:
    """Size and channels of images if they are given; of the latents of a folder, in any case."""
    if config.data in (*NATIVE, *TOYS):
        return {"image_size": config.image_size, "channels": config.channels}
    space = SampleSpace.of(config)
    found = {"num_classes": space.classes if space.labels else None}
    if len(space.shape) == 3:
        found |= {"channels": space.shape[0], "image_size": space.shape[-1]}
    return found


def _set(config: Namespace, name: str, value: Any) -> bool:
    """Set an argument of model and network where there is one of that name."""
    found = [arguments for arguments in _arguments(config.model) if name in arguments]
    for arguments in found:
        arguments[name] = arguments[name] if value is None else value
    return bool(found)


def _arguments(model: Namespace) -> Iterator[Namespace]:
    """The arguments of a model, and those of its network or flow."""
    arguments = model.get("init_args")
    if arguments is not None:
        yield arguments
        for part in ("net", "flow"):
            if arguments.get(part) is not None:
                yield from _arguments(arguments[part])
