"""From pure noise to samples in one call."""

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.samplers.dpm import ddim, dpm_solver_pp_2m
from course_lib.samplers.grids import uniform_grid
from course_lib.samplers.ode import euler, heun
from course_lib.samplers.sde import ancestral

__all__ = ["SOLVERS", "sample"]

SOLVERS = {f.__name__: f for f in (ancestral, ddim, dpm_solver_pp_2m, euler, heun)}
"""The solvers by name."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    solver: str = "dpm_solver_pp_2m",
    steps: int = 20,
    ts: Tensor | None = None,
    cond: Any = None,
    seed: int = 0,
    progress: bool = False,
    return_trajectory: bool = False,
    **options: Any,
) -> Tensor:
    """Draw samples: noise at t = 1, then a solver down to t = 0.

    Args:
        denoiser: any Denoiser; it is evaluated in its current mode (call ``.eval()`` first).
        shape: shape of the samples, (B, ...).
        solver: a name from ``SOLVERS``.
        steps: number of steps of equal length in t.
        ts: another grid, falling, shape (steps + 1,); then ``steps`` is not used.
        cond: condition for the denoiser, B rows.
        seed: decides the noise, on this machine to the last bit.
        progress: show a progress bar.
        return_trajectory: return every state from noise to sample, not the last alone.
        options: passed to the solver, such as ``eta`` of ddim.

    Returns:
        Samples of the given shape; with ``return_trajectory`` (steps + 1, B, ...), in which
        entry i is the state at ts[i].

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if the solver is unknown, or the solver refuses grid or shapes.
    """
    check_denoiser(denoiser)
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    ts = uniform_grid(denoiser.path, steps) if ts is None else ts
    reference = next(denoiser.parameters(), next(denoiser.buffers(), torch.empty(0)))
    generator = torch.Generator(reference.device).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=reference.device, dtype=reference.dtype)
    x = denoiser.path.sigma(ts[:1].to(x)) * x
    states = [x]
    with tqdm(total=len(ts) - 1, desc=solver, unit="step", disable=not progress) as bar:

        def arrived(i: int, s: Tensor, x: Tensor) -> None:
            bar.update()
            if return_trajectory:
                states.append(x)

        run = SOLVERS[solver]
        x = run(denoiser, x, ts, cond=cond, generator=generator, callback=arrived, **options)
    return torch.stack(states) if return_trajectory else x
