"""Lightning's Trainer and loggers, as `fit` needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, loggers
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy

from course_lib.training.checkpoint_io import AtomicCheckpointIO
from course_lib.training.sharding import FSDP

__all__ = ["build_logger", "build_trainer", "splits_weights"]


def build_trainer(
    steps: int, progress: bool, logger: Any, folder: Path | None, options: dict[str, Any] | None
) -> Trainer:
    """The Trainer of one run.

    Args:
        steps: number of optimizer steps in all.
        progress: show a bar.
        logger: what `build_logger` takes.
        folder: folder of the run, or None.
        options: more options of the Trainer; they come before the defaults made here. The strategy
            "fsdp" is ours.

    Raises:
        ValueError: Lightning refuses the options, or the logger is unknown.
    """
    options = dict(options or {})
    if options.get("strategy") == "fsdp":
        options["strategy"] = FSDP()
    bars = [TQDMProgressBar(refresh_rate=10)] if progress else []
    defaults: dict[str, Any] = {
        # Not "auto": Apple's GPU lacks float64, which the exact checks of the course need.
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        "log_every_n_steps": 10,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "enable_progress_bar": progress,
        "default_root_dir": folder,
    }
    try:
        return Trainer(
            max_steps=steps, max_epochs=-1, logger=build_logger(logger, folder),
            callbacks=[*bars, *options.pop("callbacks", [])],
            plugins=[AtomicCheckpointIO()], **defaults | options,
        )  # fmt: skip
    except MisconfigurationException as error:
        raise ValueError(f"trainer_options: {error}") from error


def build_logger(logger: Any, folder: Path | None) -> Any:
    """A logger that writes into the folder, or into `runs` where there is none.

    Args:
        logger: None, "csv", "tensorboard", "wandb", or a Lightning logger.
        folder: folder of the run, or None.

    Raises:
        ValueError: the name is none of these, or its package is not installed.
    """
    if not isinstance(logger, str):
        return logger or False
    kinds = {
        "csv": lambda folder: loggers.CSVLogger(folder, name="csv"),
        "tensorboard": lambda folder: loggers.TensorBoardLogger(folder, name="tensorboard"),
        "wandb": lambda folder: loggers.WandbLogger(save_dir=folder),
    }
    if logger not in kinds:
        raise ValueError(
            f'logger must be None, "csv", "tensorboard", "wandb" or a Lightning logger; '
            f"got {logger!r}"
        )
    try:
        return kinds[logger](str(folder or "runs"))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"logger {logger!r} needs a package that is not installed: pip install {logger}"
        ) from error


def splits_weights(trainer: Trainer) -> bool:
    """Whether the strategy splits the weights over processes."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
