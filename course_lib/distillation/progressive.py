"""Progressive distillation: a student of N steps learns what its teacher does in 2 N.

Salimans and Ho, 2022, "Progressive Distillation for Fast Sampling of Diffusion Models",
algorithm 2. Both take steps of DDIM. Each stage halves the number, until one step is left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.distillation.consistency import check_path, ddim_step
from course_lib.distillation.teachers import asked, described
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.objectives import uniform_times
from course_lib.paths import expand
from course_lib.samplers.grids import uniform_grid
from course_lib.training.batches import Data
from course_lib.training.fit import fit

__all__ = ["ProgressiveDistillation", "ProgressiveLoss"]


@dataclass
class ProgressiveLoss:
    """One DDIM step of the student for two of the teacher; an objective for ``fit``.

    From x_t the teacher takes two steps of half the length and arrives at x''. The x0 with which
    one DDIM step arrives there as well is the target of the student's data prediction. Its squared
    error counts max(SNR, 1), SNR = alpha^2 / sigma^2: the larger of the errors of x0 and eps
    (Salimans and Ho, 2022, section 4, "truncated SNR").

    Args:
        teacher: a denoiser on the student's path; it is not trained.
        steps: N, number of steps of the student, at least 1. The teacher's is 2 N.

    Raises:
        TypeError: if ``teacher`` is a bare network.
        ValueError: if ``steps`` is below 1; and, when called, if there is no teacher, it is on
            another path, or a prediction says nothing of x0 at t = 1 (the noise where alpha = 0).
    """

    teacher: Denoiser | None = field(default=None, repr=False)
    steps: int = 1
    taught_by: str = field(init=False)

    def __post_init__(self) -> None:
        self.taught_by = described(self.teacher)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss, a scalar; arguments as for ``denoising_loss``."""
        path = denoiser.path
        ts = uniform_grid(path, 2 * self.steps)
        u = uniform_times(len(x0), generator=generator).to(ts)
        n = 2 * (u * self.steps).ceil().long() - 2
        t, half, s = (ts[n + i].to(x0) for i in range(3))
        xt = path.sample(x0, t, torch.empty_like(x0).normal_(generator=generator))
        target = self.target(denoiser, xt, t, half, s, cond)
        error = (denoiser.data(xt, t, cond) - target).square().flatten(1).mean(1)
        snr = torch.exp(2 * path.log_snr_half(t))
        return (snr.clamp(min=1) * error).mean()

    @torch.no_grad()
    def target(
        self, denoiser: Denoiser, xt: Tensor, t: Tensor, half: Tensor, s: Tensor, cond: Any = None
    ) -> Tensor:
        """The x0 whose DDIM step from t to s ends where the teacher's two steps end.

        x'' = alpha'' x0 + sigma'' eps and x = alpha x0 + sigma eps, solved for x0.
        """
        teacher, path = asked(self.teacher, xt), denoiser.path
        check_path(teacher, path)
        end = ddim_step(teacher, ddim_step(teacher, xt, t, half, cond), half, s, cond)
        ratio = path.sigma(s) / path.sigma(t)
        gain = path.alpha(s) - ratio * path.alpha(t)
        return (end - expand(ratio, xt) * xt) / expand(gain, xt)


class ProgressiveDistillation:
    """Stages of :class:`ProgressiveLoss`, each with the student before it as its teacher.

    Args:
        teacher: the denoiser to begin with. It should be good at twice the steps of the first
            student. With guidance its scale is distilled in.
        student: what the first student is a copy of; by default the teacher, without guidance.
        folder: where each stage keeps its checkpoints, in ``steps_NN``. The same call goes on
            where a killed run stopped, and stages that are done are not trained again.
        seed: decides batches, times and noise; each stage has its own.
        progress: show progress bars.

    Raises:
        TypeError: if teacher or student is no Denoiser.
        ValueError: if they are on different paths.
    """

    def __init__(
        self,
        teacher: Denoiser,
        *,
        student: Denoiser | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        check_denoiser(teacher)
        guided = isinstance(teacher, ClassifierFreeGuidance)
        first: Any = student or (teacher.denoiser if guided else teacher)
        check_denoiser(first)
        check_path(teacher, first.path)
        self.teacher, self.student, self.seed, self.progress = teacher, first, seed, progress
        self.folder = None if folder is None else Path(folder)

    def run(
        self, data: Data, stages: Sequence[int] = (16, 8, 4, 2, 1), *, steps: int, **options: Any
    ) -> list[Denoiser]:
        """Train one student after the other.

        Args:
            data: as for ``fit``.
            stages: numbers of steps of the students, each half of the one before.
            steps: optimizer steps of each stage.
            options: for ``fit``, such as ``batch_size`` and ``lr``.

        Returns:
            The students. That of N steps is sampled with ``solver="ddim", steps=N``.

        Raises:
            ValueError: if the stages do not halve, and as ``fit`` does.
            KeyboardInterrupt: if Ctrl-C stopped the training of a stage; with a folder the same
                call goes on from there.
        """
        if not stages or stages[-1] < 1 or any(a != 2 * b for a, b in pairwise(stages)):
            raise ValueError(f"stages must halve, such as (4, 2, 1); got {tuple(stages)}")
        students: list[Any] = [self.student]
        for number, stage in enumerate(stages):
            loss = ProgressiveLoss(students[-1] if number else self.teacher, stage)
            given = {"seed": self.seed + number, "progress": self.progress, **options}
            folder = None if self.folder is None else self.folder / f"steps_{stage:02d}"
            student = copy.deepcopy(students[-1])
            student = fit(student, data, objective=loss, steps=steps, checkpoint=folder, **given)
            done = len(student.losses)
            if done < steps:  # fit has said so; a half-trained student teaches nothing
                raise KeyboardInterrupt(f"steps_{stage:02d} was stopped at step {done} of {steps}")
            students.append(student)
        return students[1:]
