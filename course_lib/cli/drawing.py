"""Samples in batches, guided or not, with a bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib.denoisers import Denoiser
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.samplers import sample
from course_lib.samplers.api import Solver, find_solver
from course_lib.training.batches import step_seed

__all__ = ["draw_images"]

BATCH = 250  # fixed, so that samples are a function of seed and number alone


def draw_images(
    model: Denoiser,
    shape: tuple[int, ...],
    n: int,
    *,
    labels: Tensor | None = None,
    negative: int | None = None,
    scale: float = 1.0,
    solver: str = "dpm_solver_pp_2m",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw images; the first batch is that of `sample` with the same seed.

    Args:
        model: the denoiser.
        shape: shape of an image, (C, H, W).
        n: number of images.
        labels: their classes, shape (n,), or None.
        negative: a class to lead away from, or None; only with labels.
        scale: guidance scale; 1 is none. Only with labels.
        solver: name of a solver.
        steps: its number of steps.
        seed: decides the noise.
        progress: show a bar, if the output is a terminal.

    Returns:
        Images of shape (n, C, H, W), on the CPU.

    Raises:
        ValueError: an argument is out of range.
    """
    if n < 1:
        raise ValueError(f"num_samples must be at least 1; got {n}")
    device = next(model.parameters(), torch.empty(0)).device
    guided = model if labels is None else _guided(model, negative, scale, device)
    drawn = []
    hidden = None if progress else True  # None: where the output is no terminal
    with tqdm(total=-(-n // BATCH) * steps, desc=solver, unit="step", disable=hidden) as bar:
        options: dict[str, Any] = {"solver": _watched(find_solver(solver), bar), "steps": steps}
        for batch, start in enumerate(range(0, n, BATCH)):
            size = min(BATCH, n - start)
            cond = None if labels is None else labels[start : start + size].to(device)
            noise = step_seed(seed, batch) if batch else seed
            drawn.append(sample(guided, (size, *shape), cond=cond, seed=noise, **options).cpu())
    return torch.cat(drawn)


def _watched(solver: Solver, bar: Any) -> Solver:
    """The solver, with a bar that moves at each of its steps."""

    def run(*arguments: Any, callback: Callable[..., None], **options: Any) -> Tensor:
        def arrived(*state: Any) -> None:
            callback(*state)
            bar.update()

        return solver(*arguments, callback=arrived, **options)

    return run


def _guided(model: Denoiser, negative: int | None, scale: float, device: torch.device) -> Denoiser:
    if negative is None:
        return ClassifierFreeGuidance(model, scale)
    return NegativePrompt(model, torch.tensor([negative], device=device), scale)
