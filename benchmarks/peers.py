"""Other people's solvers, behind one function each; a package that is missing is left out.

`pip install diffusers` adds the first; the second is among the requirements, for tests.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from course_lib import Denoiser, DiscreteVP

__all__ = ["Run", "diffusers_schedulers", "missing", "run_scheduler", "torchdiffeq_runs"]


@dataclass(frozen=True)
class Run:
    """Where a solver ended, and what the exact flow has to be followed between to judge it."""

    x: Tensor
    start: float
    end: float
    evaluations: int


def missing() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name in ("diffusers", "torchdiffeq") if not importlib.util.find_spec(name)]


def diffusers_schedulers(path: DiscreteVP, quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, constructor) for the deterministic multistep schedulers and Heun's method.

    Every combination of order, spacing of the time steps, noise levels and treatment of the end.
    """
    if "diffusers" in missing():
        return
    import diffusers

    spacings = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
    levels = ["karras_sigmas", "exponential_sigmas", "beta_sigmas"]
    grids = [*spacings, *({f"use_{level}": True} for level in levels)]
    ends = [{"final_sigmas_type": end} for end in ("zero", "sigma_min")]
    lower = [{"lower_order_final": flag} for flag in (True, False)]
    orders = [{"solver_order": order} for order in (2, 3)]
    euler = [{}, {"euler_at_final": True}]
    rules = [{"solver_type": rule} for rule in ("midpoint", "heun")]
    b_h = [{"solver_type": rule} for rule in ("bh1", "bh2")]
    lu = {"use_lu_lambdas": True}
    families: dict[str, tuple[list[dict[str, Any]], ...]] = {
        "DPMSolverMultistepScheduler": ([*grids, lu], orders, ends, lower, euler, rules),
        "UniPCMultistepScheduler": (grids, orders, ends, lower, b_h),
        "DEISMultistepScheduler": (grids, orders, lower),
        "HeunDiscreteScheduler": (grids,),
        "DDIMScheduler": (spacings,),
    }
    for name, choices in families.items():
        for options in itertools.product(*(choice[:1] if quick else choice for choice in choices)):
            merged = {key: value for option in options for key, value in option.items()}
            label = " ".join([name.removesuffix("Scheduler"), *map(_short, merged.items())])
            make = partial(getattr(diffusers, name), trained_betas=path.betas.numpy(), **merged)
            yield label, make


def _short(option: tuple[str, object]) -> str:
    """How an option is written in the table: its value, or its name if that is True."""
    key, value = option
    return key.removeprefix("use_") if value is True else f"{key.split('_')[-1]}={value}"


def run_scheduler(
    make: Callable[[], Any], denoiser: Denoiser, noise: Tensor, evaluations: int
) -> Run | None:
    """Sample with a scheduler as its users do: float32, whole time steps, its own start and end.

    None where it refuses this number of steps. Step n of T is our time (n + 1) / T.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make()
        heun = type(scheduler).__name__.startswith("Heun")
        T = scheduler.config.num_train_timesteps
        try:
            scheduler.set_timesteps((evaluations + 1) // 2 if heun else evaluations)
            steps = scheduler.timesteps
            # Heun's state is x / alpha = x sqrt(1 + (sigma / alpha)^2), the others' is x.
            x = noise * torch.sqrt(1 + scheduler.sigmas[0] ** 2) if heun else noise.clone()
            for n in steps:
                t = torch.full((len(x),), (int(n) + 1) / T, dtype=torch.float64)
                eps = denoiser.noise(scheduler.scale_model_input(x, n).double(), t).float()
                x = scheduler.step(eps, n, x).prev_sample
        except (ValueError, IndexError, RuntimeError):
            return None
    at_zero = heun or scheduler.config.get("final_sigmas_type", "sigma_min") == "zero"
    at_zero = at_zero or type(scheduler).__name__.startswith("DDIM")
    return Run(x.double(), (int(steps[0]) + 1) / T, 0.0 if at_zero else 1 / T, len(steps))


FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4, "explicit_adams": 1}


def torchdiffeq_runs(
    denoiser: Denoiser, x: Tensor, evaluations: int, end: float
) -> Iterator[tuple[str, Run]]:
    """Yield the probability-flow ODE in t by torchdiffeq: fixed uniform grids, and dopri5.

    dopri5 gets the smallest of many tolerances with which it stays within the evaluations.
    """
    if "torchdiffeq" in missing():
        return
    from torchdiffeq import odeint

    count = 0

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return denoiser.velocity(x, t.clamp(0, 1).expand(len(x)))

    ends = torch.tensor([1.0, end], dtype=torch.float64)
    for method, cost in FIXED.items():
        count, steps = 0, evaluations // cost
        if steps:
            times = torch.linspace(1, end, steps + 1, dtype=torch.float64)
            out = odeint(velocity, x, times, method=method)[-1]
            if count <= evaluations:
                yield f"torchdiffeq {method}", Run(out, 1.0, end, count)
    for exponent in range(16, -1, -1):
        count, tolerance = 0, 10 ** (-exponent / 4)
        out = odeint(velocity, x, ends, method="dopri5", rtol=tolerance, atol=tolerance)[-1]
        if count <= evaluations:
            yield "torchdiffeq dopri5", Run(out, 1.0, end, count)
            return
