"""The diffusion engine with a score flow in the place of the U-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from course_lib.flows.objectives import flow_likelihood
from course_lib.flows.score_flow import ScoreFlowNetwork
from course_lib.samplers import sample
from course_lib.training.batches import Batches, Data
from course_lib.training.engine import Engine

__all__ = ["FlowDiffusionEngine"]


class FlowDiffusionEngine(Engine):
    """Training step, moving average and sampling of a score flow, as a LightningModule.

    ``lightning.Trainer(max_steps=steps).fit(engine)`` trains it. :func:`course_lib.training.fit`
    with the same options ends with the same weights, and adds resuming and guards.

    Args:
        denoiser: the score flow.
        data: as for `fit`: x0 of shape (N, ...), a tuple (x0, cond), or a sampler.
        objective: `flow_likelihood`, `flow_score_matching`, or another.
        steps: number of optimizer steps.
        batch_size: examples of a step.
        lr: learning rate of Adam.
        ema: decay of the moving average of the weights.
        seed: decides batches, times and noise.

    Raises:
        TypeError: if `denoiser` is no ScoreFlowNetwork, or data is none of the three forms.
    """

    def __init__(
        self,
        denoiser: ScoreFlowNetwork,
        data: Data,
        *,
        objective: Callable[..., Tensor] = flow_likelihood,
        steps: int,
        batch_size: int = 256,
        lr: float = 1e-3,
        ema: float = 0.999,
        seed: int = 0,
    ) -> None:
        if not isinstance(denoiser, ScoreFlowNetwork):
            raise TypeError(f"denoiser must be a ScoreFlowNetwork; got {type(denoiser).__name__}")
        config = {"steps": steps, "lr": lr, "ema": ema, "lr_schedule": "constant", "grad_clip": 1.0}
        super().__init__(denoiser, Batches(data, batch_size, seed), objective, config)

    def sample(self, n: int, **options: Any) -> Tensor:
        """Draw with the averaged weights; options as for :func:`course_lib.samplers.sample`.

        Returns:
            Shape (n, ...) of the data.
        """
        example, _ = self.batches.batch(0)
        averaged: Any = self.averaged.module.eval()
        return sample(averaged, (n, *example.shape[1:]), **options)
