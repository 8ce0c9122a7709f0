"""Samples of the averaged model while it trains: the earliest sign of trouble is to be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from course_lib.denoisers import Denoiser
from course_lib.plotting.render import encoded
from course_lib.training.atomic import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["SampleImages"]


class SampleImages(Callback):
    """Show samples every few steps: in TensorBoard or Weights & Biases, or as PNG files.

    Args:
        every: number of steps from one picture to the next.
        draw: called with the averaged model, in evaluation mode; returns a picture, uint8 of shape
            (H, W, 4). With the same noise each time one sees the same samples get better. It must
            leave the global random state as it is, so that it does not disturb the run.
        folder: where the files go, into `samples/step-000000500.png`, if no logger takes images.
    """

    def __init__(self, every: int, draw: Callable[[Denoiser], np.ndarray], folder: Path) -> None:
        self.every, self.draw, self.folder = every, draw, folder

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
        training = model.training
        model.eval()
        try:
            return self.draw(model)
        finally:
            model.train(training)

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
