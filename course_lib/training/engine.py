"""The training loop of the first chapter, as one LightningModule.

Lightning brings devices, precision, loggers, progress bars and distribution; what is left here is
what the course teaches: draw a batch, take the loss, step, average the weights.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from course_lib.training.batches import Batches, step_seed, to_device
from course_lib.training.checkpoints import checkpoint_path
from course_lib.training.sharding import shard
from course_lib.training.shares import SharedDraws

__all__ = ["Engine", "ema_decay", "learning_rate_factor"]


def ema_decay(ema: float, updates: int) -> float:
    """Decay of the average of the weights after `updates` updates.

    min(ema, (1 + n) / (10 + n)): a young average forgets faster, so that a short run is not
    dominated by its first, random weights (the rule of TensorFlow's ExponentialMovingAverage).
    """
    return min(ema, (1 + updates) / (10 + updates))


def learning_rate_factor(
    step: int, steps: int, schedule: str, lr_step: int = 1, lr_gamma: float = 1.0
) -> float:
    """Factor on the learning rate at `step` of `steps`.

    "constant" is 1. "step" is `lr_gamma` to the power of `step // lr_step`. "cosine" rises linearly
    over the first twentieth and then falls to 0 along half a cosine (Loshchilov and Hutter, 2017).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return lr_gamma ** (step // lr_step)
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


class Engine(LightningModule):
    """One step of training, and the exponential moving average (EMA) of the weights.

    Args:
        model: the network or denoiser to train.
        batches: the data, by number of the step.
        objective: called as `objective(model, x0, cond, generator=generator)`; returns a scalar.
            If it takes `progress`, it is given `progress=step / steps` as well.
        config: keyword options of `fit` that shape the result (steps, lr, ema, grad_clip,
            lr_schedule, and lr_step and lr_gamma if it is "step"); a checkpoint remembers them.
        folder: folder for checkpoints, or None.
        save_every: number of steps from one checkpoint to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        objective: Callable[..., Tensor],
        config: dict[str, Any],
        folder: Path | None = None,
        save_every: int = 500,
    ) -> None:
        super().__init__()
        self.model, self.batches, self.objective, self.config = model, batches, objective, config
        self.folder, self.save_every, self.saved = folder, save_every, -1
        self.averaged = AveragedModel(model, multi_avg_fn=self._average).requires_grad_(False)
        self.losses: list[float] = []
        self.interrupted = False
        self.description = _describe(model)  # now, while it is whole
        self.tells_progress = _takes_progress(objective)

    def configure_model(self) -> None:
        """Split model and average over the processes, if the strategy is FSDP."""
        if self.device_mesh is not None:
            for module in (self.model, self.averaged.module):
                shard(module, self.device_mesh["data_parallel"])

    def train_dataloader(self) -> Iterable[int]:
        """Endless and empty: the step draws its own batch."""
        return repeat(0)

    def training_step(self, _: int) -> Tensor:
        """Loss of batch n with noise n, both functions of (seed, n) alone."""
        step, rank = self.global_step, self.global_rank
        x0, cond = self.batches.batch(step, rank, self.trainer.world_size)
        # For dropout, which knows no generator.
        _seed_global(step_seed(self.batches.seed, step, 1 + rank), self.device)
        options: dict[str, Any] = {"generator": self._generator(1)}
        if self.tells_progress:
            options["progress"] = step / self.config["steps"]
        with self._shared(options["generator"], len(x0)):
            loss = self.objective(
                self.model, x0.to(self.device), to_device(cond, self.device), **options
            )
        self._record(self._agree(loss), step)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm of the gradient, and let no infinite gradient reach the weights."""
        clip = self.config["grad_clip"] or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        # Under float16 the scaler expects infinities, skips such a step and lowers its scale.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scaled and not torch.isfinite(norm):
            raise FloatingPointError(_not_finite("the gradient", norm.item(), self.global_step))

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the average, and save now and then."""
        self.averaged.update_parameters(self.model)
        if self.global_step % self.save_every == 0:
            self._save()

    def on_train_end(self) -> None:
        """Save the last step, be it the end or an interrupt."""
        self._save()

    def configure_optimizers(self) -> Any:
        """Adam (Kingma and Ba, 2015) with the learning-rate schedule of `fit`."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Fused is faster; on a GPU it would hide the gradient's scale under float16 from clipping.
        fused = self.device.type == "cpu"
        optimizer = torch.optim.Adam(parameters, lr=self.config["lr"], fused=fused)
        steps, schedule = self.config["steps"], self.config["lr_schedule"]
        if schedule == "constant":
            return optimizer
        decay = [self.config[key] for key in ("lr_step", "lr_gamma") if key in self.config]
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, schedule, *decay)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the losses so far, and what must be the same for a run to go on."""
        checkpoint["losses"], checkpoint["config"] = self.losses, self.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the losses back."""
        self.losses = list(checkpoint["losses"])

    def fingerprint(self) -> dict[str, Any]:
        """What decides the weights of step n: runs that differ in it cannot be joined."""
        config = {
            "model": self.description,
            "objective": getattr(self.objective, "__qualname__", _no_addresses(self.objective)),
            "data": self.batches.description,
            "batch_size": self.batches.batch_size,
            "seed": self.batches.seed,
            **self.config,
        }
        if self.config["lr_schedule"] != "cosine" and not self.tells_progress:
            config.pop("steps")  # the others do not look ahead: such a run can be prolonged
        return config

    def _generator(self, stream: int) -> torch.Generator:
        seed = step_seed(self.batches.seed, self.global_step, stream)
        return torch.Generator(self.device).manual_seed(seed)

    def _shared(self, generator: torch.Generator, rows: int) -> AbstractContextManager[Any]:
        """Where several processes draw from the generator what one would draw alone."""
        rank, world_size = self.global_rank, self.trainer.world_size
        if world_size == 1:
            return nullcontext()
        own = self._generator(1 + world_size + rank)
        return SharedDraws(generator, own, rows, rank, world_size)

    def _agree(self, loss: Tensor) -> float:
        """The mean loss of all processes; all stop after this step if one was interrupted."""
        mine = torch.stack([loss.detach(), loss.new_tensor(float(self.interrupted))])
        mean, interrupted = self.trainer.strategy.reduce(mine, reduce_op="mean").tolist()
        self.trainer.should_stop |= interrupted > 0
        return mean

    def _record(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(_not_finite("the loss", loss, step))
        self.losses.append(loss)
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("loss", loss, prog_bar=True)

    def _save(self) -> None:
        if self.folder is not None and self.saved != self.global_step:
            self.trainer.save_checkpoint(checkpoint_path(self.folder, self.global_step))
            self.saved = self.global_step

    def _average(self, averaged: Any, current: Any, updates: Any) -> None:
        decay = ema_decay(self.config["ema"], int(updates))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)


def _takes_progress(objective: Callable[..., Any]) -> bool:
    """Whether an objective has the keyword `progress`, or wraps one that has."""
    parameters = inspect.signature(objective).parameters
    wraps = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    inner = getattr(objective, "objective", None)  # of ConditionDropout, which passes options on
    return "progress" in parameters or (wraps and callable(inner) and _takes_progress(inner))


def _describe(model: nn.Module) -> str:
    """Class, target, path and shapes (as a hash) of a model; the same in every process."""
    shapes = [(name, tuple(p.shape)) for name, p in model.state_dict().items()]
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    parts = [type(model).__name__, getattr(model, "predicts", ""), getattr(model, "path", "")]
    return _no_addresses(" ".join(map(str, [*parts, digest])))


def _no_addresses(value: object) -> str:
    """The string of a value, the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _seed_global(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does, for the devices in use alone: it is 10 times faster.

    `fit` gives the old state back at its end.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _not_finite(what: str, value: float, step: int) -> str:
    return (
        f"{what} is {value} at step {step}; the weights are those of the step before. Check: is "
        "the learning rate too high (lr, grad_clip)? Does the data hold NaN, or values far from "
        "[-1, 1]? Does the loss divide by alpha(t) or sigma(t) where they vanish (t at 0 or 1)? "
        "Does the precision overflow?"
    )
