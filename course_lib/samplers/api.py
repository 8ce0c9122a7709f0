"""From pure noise to samples in one call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.samplers.dpm import ddim, dpm_solver_2, dpm_solver_3
from course_lib.samplers.grids import uniform_grid
from course_lib.samplers.multistep import deis, dpm_solver_pp_2m, dpm_solver_pp_3m, unipc
from course_lib.samplers.ode import dopri5, euler, heun, rk4
from course_lib.samplers.sde import (
    ancestral,
    euler_maruyama,
    predictor_corrector,
    sde_dpm_solver_pp_2m,
)

__all__ = ["SOLVERS", "Solver", "find_solver", "initial_noise", "sample"]

Solver = Callable[..., Tensor]
"""``solver(denoiser, x, ts, *, cond, generator, callback) -> x``."""

_ODE = (euler, heun, rk4, dopri5, ddim, dpm_solver_2, dpm_solver_3)
_MULTISTEP = (dpm_solver_pp_2m, dpm_solver_pp_3m, unipc, deis)
_SDE = (ancestral, euler_maruyama, sde_dpm_solver_pp_2m, predictor_corrector)
SOLVERS: dict[str, Solver] = {f.__name__: f for f in (*_ODE, *_MULTISTEP, *_SDE)}
"""The solvers by name."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    solver: str | Solver = "dpm_solver_pp_2m",
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
        solver: a name from ``SOLVERS``, or a solver; one that was fitted brings its own grid.
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
    run = find_solver(solver)
    name = getattr(run, "__name__", type(run).__name__)
    ts = getattr(run, "ts", None) if ts is None else ts
    ts = uniform_grid(denoiser.path, steps) if ts is None else ts
    x, generator = initial_noise(denoiser, shape, ts, seed)
    states = [x]
    with tqdm(total=len(ts) - 1, desc=name, unit="step", disable=not progress) as bar:

        def arrived(i: int, s: Tensor, x: Tensor) -> None:
            bar.update()
            if return_trajectory:
                states.append(x)

        x = run(denoiser, x, ts, cond=cond, generator=generator, callback=arrived, **options)
    return torch.stack(states) if return_trajectory else x


def find_solver(solver: str | Solver) -> Solver:
    """The solver of that name; a solver stays what it is.

    Raises:
        ValueError: if there is none.
    """
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    return SOLVERS[solver]


def initial_noise(
    denoiser: Denoiser, shape: tuple[int, ...], ts: Tensor, seed: int
) -> tuple[Tensor, torch.Generator]:
    """sigma(ts[0]) eps, on the denoiser's device, and the generator that eps came from."""
    reference = next(denoiser.parameters(), next(denoiser.buffers(), torch.empty(0)))
    generator = torch.Generator(reference.device).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=reference.device, dtype=reference.dtype)
    return denoiser.path.sigma(ts[:1].to(x)) * x, generator
