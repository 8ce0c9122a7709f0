"""Entropic transport to an equal error of the marginals, beside POT, on one machine.

Points in the unit square, uniform against bent, squared distances divided by the largest, equal
weights, float64. Everybody must bring the L1 error of both marginals of each problem, computed here
from the plan, to 1e-6. POT stops at tolerances of its own: each solver gets the loosest one of a
ladder that suffices. The fastest of POT's solvers that gets there within the limit is the peer; it
and ours then take turns. One that needs more than the limit, or ends elsewhere, has no time.

Also: what a coupling costs beside a training step, and the memory of a large point cloud.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring import median_seconds, paired_seconds
from course_lib import Linear, NetDenoiser, denoising_loss
from course_lib.nets import MLP, UNet
from course_lib.transport import MinibatchOT, PointCloud, SinkhornCoupling, sinkhorn

GOAL, EPSILONS, LIMIT = 1e-6, (0.1, 0.01, 0.001), 20.0
SHAPES = {"1000": (1, 1000), "2000": (1, 2000), "4000": (1, 4000), "64 x 128": (64, 128)}
LADDER = [2.0**-k for k in range(8)]
CLOUD = 20_000


def problem(batch: int, n: int) -> Tensor:
    """Costs, (batch, n, n)."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, batch, n, 2, generator=generator, dtype=torch.float64)
    cost = torch.cdist(x, y**1.5).square()
    return cost / cost.amax((1, 2), keepdim=True)


def error(plan: Tensor) -> float:
    """L1 error of both marginals, of the worst problem."""
    _, n, m = plan.shape
    rows, columns = (plan.sum(2) - 1 / n).abs().sum(1), (plan.sum(1) - 1 / m).abs().sum(1)
    return float((rows + columns).max())


def ours(cost: Tensor) -> Callable[[float, float], Tensor]:
    """(epsilon, tolerance) -> plan."""
    return lambda epsilon, tol: sinkhorn(None, None, cost, epsilon, tol=tol).matrix


def theirs(cost: Tensor) -> Iterator[tuple[str, Callable[[float, float], Tensor]]]:
    """POT's solvers: name, and (epsilon, tolerance) -> plan."""
    import ot

    batch, n, m = cost.shape
    if batch > 1:
        for method, most in (("sinkhorn", 30_000), ("log_sinkhorn", 1_500)):
            for backend, c in {"numpy": cost.numpy(), "torch": cost}.items():
                options = {"max_iter": most, "method": method, "grad": "detach"}
                solve = partial(ot.solve_batch, c, **options)
                yield (
                    f"solve_batch {method} {backend}",
                    lambda e, t, s=solve: torch.as_tensor(s(e, tol=t).plan),
                )
        return
    a, b = torch.full((n,), 1 / n, dtype=torch.float64), torch.full((m,), 1 / m).double()
    for method in ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"):
        options = {"method": method, "numItermax": iterations(method, n), "warn": False}
        for backend, (p, q, c) in {
            "numpy": (a.numpy(), b.numpy(), cost[0].numpy()),
            "torch": (a, b, cost[0]),
        }.items():
            solve = partial(ot.sinkhorn, p, q, c, **options)
            # They look at the L2 norm, which is about L1 / sqrt(n).
            yield (
                f"{method} {backend}",
                lambda e, t, s=solve: torch.as_tensor(s(reg=e, stopThr=t / math.sqrt(n)))[None],
            )


def iterations(method: str, n: int) -> int:
    """As many as the limit allows, about."""
    nanoseconds = {"sinkhorn": 1, "sinkhorn_log": 25, "sinkhorn_stabilized": 7}[method]  # an entry
    return int(LIMIT * 1e9 / (nanoseconds * n * n))


def reach(solve: Callable[[float, float], Tensor], epsilon: float) -> tuple[float, float] | None:
    """Seconds and tolerance with which the goal is reached; None if it is not."""
    started = time.perf_counter()
    for factor in LADDER:
        begin = time.perf_counter()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            reached = error(solve(epsilon, GOAL * factor))
        now = time.perf_counter()
        if reached <= GOAL:
            return now - begin, GOAL * factor
        if now - started > LIMIT or not math.isfinite(reached):
            return None
    return None


def race(name: str, epsilon: float, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    cost = problem(*SHAPES[name])
    found = {peer: (solve, reach(solve, epsilon)) for peer, solve in theirs(cost)}
    times = {peer: reached and reached[0] for peer, (_, reached) in found.items()}
    mine, tol = ours(cost), (reach(ours(cost), epsilon) or (0, GOAL))[1]
    row = {"size": name, "epsilon": epsilon, "peers": times, "error": error(mine(epsilon, tol))}
    row["iterations"] = sinkhorn(None, None, cost, epsilon, tol=tol).iterations
    there = {peer: seconds for peer, seconds in times.items() if seconds}
    if not there:
        return {**row, "ours": median_seconds(lambda: mine(epsilon, tol), repeats)}
    best = min(there, key=lambda peer: there[peer])
    solve, reached = found[best]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        a, b, ratio = paired_seconds(
            lambda: mine(epsilon, tol), lambda: solve(epsilon, reached[1]), repeats
        )
    return {**row, "ours": a, "best": best, "theirs": b, "times_faster": 1 / ratio}


def training(repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a coupling, beside those of the training step that it joins."""
    rows = []
    cases = {
        "points, MLP": ((2,), lambda: MLP(2, width=128), (128, 256, 512, 1024)),
        "32x32, UNet": ((1, 32, 32), lambda: UNet(1, 32, (1, 2, 2), patch=2), (64, 128, 256)),
    }
    for name, (shape, net, batches) in cases.items():
        denoiser = NetDenoiser(net(), Linear(), "velocity")
        for batch in batches:
            x0, eps = torch.randn(2, batch, *shape)
            step = median_seconds(partial(one_step, denoiser, x0), repeats)
            rules = {"exact": MinibatchOT(), "entropic, 0.05": SinkhornCoupling(0.05)}
            for rule, coupling in rules.items():
                generator = torch.Generator().manual_seed(0)
                pair = partial(coupling, x0, eps, None, generator=generator)
                rows.append(
                    {
                        "case": name,
                        "batch": batch,
                        "coupling": rule,
                        "ms": 1e3 * median_seconds(pair, repeats),
                        "step_ms": 1e3 * step,
                    }
                )
    return rows


def one_step(denoiser: NetDenoiser, x0: Tensor) -> None:
    """Loss and gradient of a batch."""
    denoising_loss(denoiser, x0).backward()


def large_cloud() -> dict[str, float]:
    """Seconds and peak memory of a point cloud, in a process of its own."""
    code = f"from benchmarks.transport import solve_cloud; solve_cloud({CLOUD})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, gigabytes, reached, count = map(float, done.stdout.split())
    return {
        "points": CLOUD,
        "seconds": seconds,
        "peak_gb": gigabytes,
        "error": reached,
        "iterations": count,
    }


def solve_cloud(n: int) -> None:
    """Solve one problem and print seconds, peak memory in GB, marginal error and iterations."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    begin = time.perf_counter()
    plan = sinkhorn(None, None, PointCloud(x, y**1.5), 0.05)
    seconds = time.perf_counter() - begin
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(seconds, peak, float(plan.error), plan.iterations)


def measure(quick: bool = False) -> dict[str, Any]:
    """All tables."""
    sizes = ["1000", "64 x 128"] if quick else list(SHAPES)
    cases = [(size, epsilon) for size in sizes for epsilon in EPSILONS]
    repeats = 3 if quick else 5
    rows = [race(*case, repeats) for case in tqdm(cases, desc="transport")]
    result: dict[str, Any] = {"rows": rows, "training": training(repeats)}
    return result if quick else {**result, "cloud": large_cloud()}


def table(values: dict[str, Any]) -> str:
    """The tables as text."""
    head = f"{'n':>9} {'epsilon':>8} {'iters':>6} {'ours, s':>9} {'POT, s':>9} {'faster':>7}  peer"
    lines = [head]
    for row in values["rows"]:
        peer = (
            f"{row['theirs']:9.4f} {row['times_faster']:6.1f}x  {row['best']}"
            if "best" in row
            else f"{'-':>9} {'-':>7}  none within {LIMIT:.0f} s"
        )
        mine = f"{row['iterations']:6d} {row['ours']:9.4f}"
        lines.append(f"{row['size']:>9} {row['epsilon']:8.3f} {mine} {peer}")
    lines.append(f"\n{'case':14s}{'batch':>6} {'coupling':16s}{'ms':>8} {'step, ms':>9}")
    lines += [
        f"{row['case']:14s}{row['batch']:6d} {row['coupling']:16s}{row['ms']:8.2f} "
        f"{row['step_ms']:9.2f}"
        for row in values["training"]
    ]
    if cloud := values.get("cloud"):
        lines.append(
            f"\n{cloud['points']} x {cloud['points']} points: {cloud['seconds']:.0f} s, "
            f"{cloud['peak_gb']:.2f} GB at most, error {cloud['error']:.1e}"
        )
    return "\n".join(lines)
