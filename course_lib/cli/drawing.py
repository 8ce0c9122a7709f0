"""Samples in batches, guided or not, with a bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib import samplers
from course_lib.cli.spaces import SampleSpace
from course_lib.denoisers import Denoiser
from course_lib.distillation import consistency, mean_flow
from course_lib.flows import direct
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.samplers import sample
from course_lib.samplers.api import Solver
from course_lib.training.batches import step_seed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SOLVERS", "check_solver", "draw_samples", "preview"]

OWN = {f.__name__: f for f in (direct, consistency, mean_flow)}
SOLVERS: dict[str, Solver] = {**samplers.SOLVERS, **OWN}
"""The solvers of the command line by name: those of all denoisers, and those of special ones."""
BATCH = 250  # fixed, so that samples are a function of seed and number alone
COLUMNS, ROWS, POINTS = 10, 2, 1000  # of a preview


def draw_samples(
    model: Denoiser,
    shape: tuple[int, ...],
    n: int,
    *,
    labels: Tensor | list[str] | None = None,
    negative: int | str | None = None,
    scale: float = 1.0,
    solver: str = "dpm_solver_pp_2m",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw samples; the first batch is that of `sample` with the same seed.

    Args:
        model: the denoiser.
        shape: shape of one sample.
        n: number of samples.
        labels: their classes, shape (n,); n prompts, for a model that knows words; or None.
        negative: a class, or a prompt, to lead away from, or None; only with labels.
        scale: guidance scale; 1 is none. Only with labels.
        solver: name of a solver.
        steps: its number of steps; "direct" takes one.
        seed: decides the noise.
        progress: show a bar, if the output is a terminal.

    Returns:
        Shape (n, ...), on the CPU.

    Raises:
        ValueError: an argument is out of range.
        TypeError: the solver "direct" is asked of what is no score flow, or "mean_flow" of what
            is no mean flow.
    """
    if n < 1:
        raise ValueError(f"num_samples must be at least 1; got {n}")
    run, steps = check_solver(solver, scale, negative), 1 if solver == "direct" else steps
    device = next(model.parameters(), torch.empty(0)).device
    guided = model if labels is None else _guided(model, negative, scale, device)
    drawn = []
    hidden = None if progress else True  # None: where the output is no terminal
    with tqdm(total=-(-n // BATCH) * steps, desc=solver, unit="step", disable=hidden) as bar:
        options: dict[str, Any] = {"solver": _watched(run, bar), "steps": steps}
        for batch, start in enumerate(range(0, n, BATCH)):
            size = min(BATCH, n - start)
            cond = None if labels is None else labels[start : start + size]
            cond = cond.to(device) if isinstance(cond, Tensor) else cond
            noise = step_seed(seed, batch) if batch else seed
            drawn.append(sample(guided, (size, *shape), cond=cond, seed=noise, **options).cpu())
    return torch.cat(drawn)


def check_solver(name: str, scale: float, negative: int | str | None = None) -> Solver:
    """The solver of that name.

    Raises:
        ValueError: there is none, or guidance is asked for and it is "direct" or "mean_flow".
    """
    if name not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {name!r}")
    if name in ("direct", "mean_flow") and (scale != 1 or negative is not None):
        raise ValueError(
            f"solver {name} knows no guidance: scale must be 1, without a negative label; "
            f"got scale {scale}, negative label {negative}"
        )
    return SOLVERS[name]


def preview(
    model: Denoiser, space: SampleSpace, scale: float, solver: str, steps: int
) -> np.ndarray:
    """A picture of a few samples, always from the same noise; of classes, all in turn.

    Args:
        model: the denoiser.
        space: what its samples are.
        scale: guidance scale; it matters only with labels.
        solver: name of a solver.
        steps: its number of steps.

    Returns:
        uint8 RGBA, shape (H, W, 4).
    """
    n = POINTS if space.points else ROWS * COLUMNS
    labels = torch.arange(n) % space.classes if space.labels else None
    options: dict[str, Any] = {"labels": labels, "scale": scale, "solver": solver, "steps": steps}
    samples = draw_samples(model, space.shape, n, **options)
    return space.picture(space.decode(samples), labels, COLUMNS, gap=1)


def _watched(solver: Solver, bar: Any) -> Solver:
    """The solver, with a bar that moves at each of its steps."""

    def run(*arguments: Any, callback: Callable[..., None], **options: Any) -> Tensor:
        def arrived(*state: Any) -> None:
            callback(*state)
            bar.update()

        return solver(*arguments, callback=arrived, **options)

    return run


def _guided(
    model: Denoiser, negative: int | str | None, scale: float, device: torch.device
) -> Denoiser:
    if negative is None:
        return model if scale == 1 else ClassifierFreeGuidance(model, scale)
    if isinstance(negative, str):
        return NegativePrompt(model, [negative], scale)
    return NegativePrompt(model, torch.tensor([negative], device=device), scale)
