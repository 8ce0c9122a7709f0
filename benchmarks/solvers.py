"""Error of a sampler against the exact flow, at a few evaluations, beside its peers.

The data are Gaussian mixtures of unit variance in the plane, so the denoiser is exact and all
error is the solver's. Everyone gets the same noise, DDPM's 1000 betas and the same denoiser. The
exact flow is solved in float64 to a tolerance of 1e-9 between the solver's own start and end; the
error is the root mean square distance to it. There are two ends, t = 0 and t = 1/1000 (what
diffusers calls zero and sigma_min), and errors are compared at the same end only.

Ours and theirs both are the best of many combinations, chosen on the same noise. What is fitted
(grid, bespoke solver) is fitted to other noise. Peers round times to whole steps, which counts as
theirs; those that start below t = 1 are compared with the shorter flow from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Identity, paired_seconds
from benchmarks.peers import (
    Run,
    diffusers_schedulers,
    missing,
    run_scheduler,
    torchdiffeq_runs,
)
from course_lib import CosineVP, DiscreteVP, GaussianMixture, NetDenoiser, Path, linear_betas
from course_lib.samplers import (
    SOLVERS,
    CountEvaluations,
    angle_grid,
    cosine_grid,
    deis,
    dopri5,
    fit_bespoke,
    karras_grid,
    lambda_grid,
    optimise_grid,
    uniform_grid,
    unipc,
)

BUDGETS = (5, 8, 10, 15, 20, 40)
PATH = DiscreteVP(linear_betas(1000))
ENDS = {"zero": 0.0, "sigma_min": 1 / 1000}
OURS: dict[str, tuple[Callable[..., Tensor], int]] = {  # with evaluations a step
    **{name: (SOLVERS[name], 1) for name in ("ddim", "dpm_solver_pp_2m", "dpm_solver_pp_3m")},
    **{f"unipc-{order}": (partial(unipc, order=order), 1) for order in (2, 3)},
    **{f"deis-{order}": (partial(deis, order=order), 1) for order in (2, 3)},
    **{name: (SOLVERS[name], 2) for name in ("heun", "dpm_solver_2")},
    "dpm_solver_3": (SOLVERS["dpm_solver_3"], 3),
    "rk4": (SOLVERS["rk4"], 4),
}


def eight_gaussians(path: Path) -> GaussianMixture:
    """Return eight round Gaussians on a circle, scaled to unit variance."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 5 * torch.stack([angles.cos(), angles.sin()], dim=1) / math.sqrt(12.6)
    covs = 0.1 / 12.6 * torch.eye(2, dtype=torch.float64).repeat(8, 1, 1)
    return GaussianMixture(means, covs, torch.ones(8, dtype=torch.float64), path)


def five_blades(path: Path) -> GaussianMixture:
    """Return five long and narrow Gaussians of unequal weight, askew on a circle."""
    angles = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
    turned = angles + 0.9
    cos, sin = turned.cos(), turned.sin()
    axes = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    covs = axes @ torch.tensor([0.25, 0.0064], dtype=torch.float64).diag() @ axes.mT
    means = 1.3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    weights = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=torch.float64)
    return GaussianMixture(means, covs, weights, path)


MIXTURES = {"eight gaussians": eight_gaussians, "five blades": five_blades}


def exact_flow(
    mixture: Callable[[Path], GaussianMixture], x: Tensor, start: float, end: float
) -> Tensor:
    """Follow the flow from `start` to `end` on PATH.

    All variance-preserving paths share it where lambda is the same; on CosineVP it is smooth.
    """
    lam = PATH.log_snr_half(torch.tensor([start, end], dtype=torch.float64))
    smooth = CosineVP()
    options = {"atol": 1e-9, "rtol": 1e-9, "norm": "sample", "t_min": 0.0, "max_steps": 20_000}
    return dopri5(mixture(smooth), x, smooth.t_of_lambda(lam).clamp(0, 1), **options)


def grids(steps: int, end: float) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain grids of this length from t = 1 to `end`, as far as they fit the path."""
    low = {"t_min": end}
    makers: dict[str, Callable[[], Tensor]] = {
        "uniform": partial(uniform_grid, PATH, steps, **low),
        "cosine": partial(cosine_grid, PATH, steps, **low),
        **{f"angle^{p}": partial(angle_grid, PATH, steps, power=p, **low) for p in (1.0, 1.5, 2.0)},
    }
    for name, grid in (("lambda", lambda_grid), ("karras", karras_grid)):
        if end > 0:  # they add a step to t = 0, which goes again
            makers[name] = lambda grid=grid: grid(PATH, steps + 1, t_min=end)[:-1]
        else:
            for t in (1e-3, 3e-3, 1e-2):
                makers[f"{name} {t:g}"] = partial(grid, PATH, steps, t_min=t)
    for name, make in makers.items():
        try:
            yield name, make()
        except ValueError:
            continue


def plain_runs(
    denoiser: GaussianMixture, x: Tensor, evaluations: int, end: float
) -> Iterator[tuple[str, Run]]:
    """Yield our solvers on plain grids."""
    for name, (solver, cost) in OURS.items():
        # A last step to sigma = 0 costs less, so one more may fit.
        for steps in {evaluations // cost, (evaluations + cost - 1) // cost}:
            for grid, ts in grids(steps, end) if steps else ():
                counted = CountEvaluations(denoiser)
                out = solver(counted, x, ts)
                if counted.count <= evaluations:
                    yield f"{name} {grid}", Run(out, 1.0, end, counted.count)


def fitted_runs(
    denoiser: GaussianMixture, x: Tensor, evaluations: int, end: float, quick: bool
) -> Iterator[tuple[str, Run]]:
    """Yield an optimised grid and a bespoke solver, fitted to other noise."""
    shape, seed = (2000, 2), 123
    iterations = 10 if quick else 100
    ts = optimise_grid(denoiser, shape, evaluations, iterations=iterations, t_min=end, seed=seed)
    yield "optimised grid", Run(unipc(denoiser, x, ts), 1.0, end, evaluations)
    if evaluations <= 20:
        fitted = fit_bespoke(
            denoiser, shape, evaluations, iterations=3 * iterations, t_min=end, seed=seed
        )
        yield "bespoke solver", Run(fitted(denoiser, x), 1.0, end, evaluations)


def errors(
    mixture: Callable[[Path], GaussianMixture], evaluations: int, quick: bool
) -> Iterator[dict[str, Any]]:
    """Yield one record for each end: the best peer, our best, and what is fitted."""
    denoiser = mixture(PATH)
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(11))
    x = noise.double()
    truth = cache(partial(exact_flow, mixture, x))

    def judged(runs: Iterator[tuple[str, Run]]) -> list[tuple[float, str, float]]:
        found = [(_rms(run.x - truth(run.start, run.end)), name, run.end) for name, run in runs]
        return sorted(found)

    peers = judged(
        (name, run)
        for name, make in diffusers_schedulers(PATH, quick)
        if (run := run_scheduler(make, denoiser, noise, evaluations))
    )
    for label, end in ENDS.items():
        rivals = [p for p in peers if p[2] == end]
        rivals = sorted(rivals + judged(torchdiffeq_runs(denoiser, x, evaluations, end)))
        ours = judged(plain_runs(denoiser, x, evaluations, end))
        fitted = judged(fitted_runs(denoiser, x, evaluations, end, quick))
        yield {
            "end": label,
            "peer": rivals[0][:2] if rivals else None,
            "plain": ours[0][:2],
            **{name: error for error, name, _ in fitted},
        }


def _rms(distance: Tensor) -> float:
    """Root mean square of the length; infinite where a sample is not finite."""
    value = distance.square().sum(-1).mean().sqrt().item()
    return value if math.isfinite(value) else math.inf


def step_microseconds(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the time of a step around a network that does nothing, ours and diffusers'."""
    import diffusers

    steps, repeats = 20, 5 if quick else 101
    pairs = {
        "ddim": ("DDIMScheduler", {}),
        "dpm_solver_pp_2m": ("DPMSolverMultistepScheduler", {}),
        "dpm_solver_pp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
        "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
    }
    net, ts = Identity(), uniform_grid(PATH, steps)
    denoiser = NetDenoiser(net, PATH, "noise")
    for shape in ((4, 2), (64, 1, 28, 28)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, (peer, options) in pairs.items():
            scheduler = getattr(diffusers, peer)(trained_betas=PATH.betas.numpy(), **options)
            *seconds, ratio = paired_seconds(
                partial(SOLVERS[name], denoiser, x, ts),
                partial(_loop, scheduler, net, x, steps),
                repeats,
            )
            ours, theirs = (1e6 * each / steps for each in seconds)
            row = {"solver": name, "batch": "x".join(map(str, shape)), "ratio": ratio}
            yield {**row, "ours": ours, "diffusers": theirs}


def _loop(scheduler: Any, net: Identity, x: Tensor, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    for n in scheduler.timesteps:
        eps = net(scheduler.scale_model_input(x, n), n.expand(len(x)))
        x = scheduler.step(eps, n, x).prev_sample
    return x


@torch.no_grad()
def measure(quick: bool) -> dict[str, Any]:
    """Return errors by mixture, evaluations and end, and the times of a step."""
    budgets = (5, 10) if quick else BUDGETS
    accuracy = [
        {"mixture": name, "evaluations": n, **record}
        for name, mixture in MIXTURES.items()
        for n in budgets
        for record in errors(mixture, n, quick)
    ]
    there = "diffusers" not in missing()
    return {
        "missing": missing(),
        "error": accuracy,
        "microseconds a step": list(step_microseconds(quick)) if there else [],
    }


def table(results: dict[str, Any]) -> str:
    """Return the errors and times as text."""
    lines = [f"not installed, left out: {name}" for name in results["missing"]]
    lines.append("\nRoot mean square distance to the exact flow")
    lines.append(f"{'':16}{'NFE':>4} {'end':10}{'peer':>8}{'ours':>8}{'grid':>8}{'bespoke':>8}")
    for row in results["error"]:
        peer, (ours, name) = row["peer"] or (math.nan, "-"), row["plain"]
        fitted = [row.get(key, math.nan) for key in ("optimised grid", "bespoke solver")]
        numbers = "".join(f"{value:8.4f}" for value in (peer[0], ours, *fitted))
        lines.append(
            f"{row['mixture']:16}{row['evaluations']:4} {row['end']:10}{numbers}"
            f"   peer: {peer[1]}; ours: {name}"
        )
    lines.append("\nMicroseconds of a step beyond the network")
    lines += [
        f"{row['solver']:20}{row['batch']:>12}  ours {row['ours']:6.0f}"
        f"  diffusers {row['diffusers']:6.0f}  ratio {row['ratio']:.2f}"
        for row in results["microseconds a step"]
    ]
    return "\n".join(lines)
