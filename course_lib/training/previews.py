"""Samples of the averaged model while it trains: the earliest sign of trouble is to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from course_lib.denoisers import Denoiser
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.plotting.images import tile
from course_lib.plotting.render import encoded
from course_lib.samplers import sample
from course_lib.training.atomic import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["SampleImages"]

COLUMNS, ROWS = 10, 2


class SampleImages(Callback):
    """Show a grid of samples every few steps: in TensorBoard or Weights & Biases, or as PNG files.

    The noise is the same each time, so that one sees the same images get better. A model with
    classes draws all of them, a column each. A run with sample images ends with the same weights as
    one without: they have a generator of their own.

    Args:
        every: number of steps from one grid to the next.
        shape: shape of an image, (C, H, W).
        classes: number of classes if the model is conditional, at most 10; or None.
        scale: guidance scale; it matters only with classes.
        folder: where the files go, into `samples/step-000000500.png`, if no logger takes images.
    """

    def __init__(
        self,
        every: int,
        shape: tuple[int, ...],
        classes: int | None,
        scale: float,
        folder: Path,
    ) -> None:
        self.every, self.shape, self.classes = every, shape, classes
        self.scale, self.folder = scale, folder

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw before the next step, when the average is up to date."""
        if trainer.global_step:
            self._perhaps(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw once more if the last step is one of those."""
        self._perhaps(trainer, pl_module)

    def _perhaps(self, trainer: Trainer, engine: Any) -> None:
        step = trainer.global_step
        if step % self.every:
            return
        # In every process: where weights are split, all of them are needed to compute anything.
        picture = self._picture(engine.averaged.module)
        if trainer.is_global_zero:
            self._show(picture, trainer, step)

    def _picture(self, model: Denoiser) -> np.ndarray:
        """The grid, uint8 RGBA."""
        number, cond = ROWS * COLUMNS, None
        if self.classes:
            device = next(model.parameters()).device
            cond = torch.arange(number, device=device) % self.classes
        guided = ClassifierFreeGuidance(model, self.scale) if self.classes else model
        training = model.training
        model.eval()
        try:
            images = sample(guided, (number, *self.shape), cond=cond)
        finally:
            model.train(training)
        return tile(images, COLUMNS)

    def _show(self, picture: np.ndarray, trainer: Trainer, step: int) -> None:
        from PIL import Image

        shown = False
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases
                logger.log_image("samples", [picture], step=step)
                shown = True
            elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                logger.experiment.add_image("samples", picture, step, dataformats="HWC")
                shown = True
        if not shown:
            path = self.folder / "samples" / f"step-{step:09d}.png"
            write_atomic(path, encoded(Image.fromarray(picture)))
