"""Normalizing flows on eight Gaussians, beside zuko's neural spline flow, and an ablation.

Everybody gets the same data, batches, number of steps, optimiser and schedule; the two spline
flows get networks of the same width and about the same number of parameters, and the same bins and
bound. The data are scaled to a deviation of 5/3, so that [-5, 5], where the splines of both act,
is three deviations; the scale is put back into the likelihood. The floor is the entropy.

`pip install zuko` adds the peer; without it its rows are left out.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measuring import paired_seconds
from course_lib.data import eight_gaussians, eight_gaussians_log_prob
from course_lib.flows.activations import ACTIVATIONS
from course_lib.flows.normalizing_flow import NeuralSplineFlow, NormalizingFlow, RealNVP
from course_lib.training import fit

FILE = "flow_ablation"
STEPS, BATCH, SEEDS, DEPTHS = 1500, 512, (0, 1), (1, 2, 3, 5)
SPLINE, ZUKO = "NeuralSplineFlow", "zuko NSF"


class Zuko(nn.Module):
    """zuko's neural spline flow, autoregressive, with networks as wide as ours."""

    def __init__(self) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.NSF(2, transforms=3, hidden_features=(64, 64), bins=8)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density, (B, 2) -> (B,)."""
        return self.flow().log_prob(x)


def contestants() -> dict[str, tuple[Callable[[], Any], float]]:
    """Return constructors, and the learning rate that suits each kind."""
    spline = {SPLINE: (lambda: NeuralSplineFlow(2, n_layers=4, hidden=64, bins=8), 5e-3)}
    if importlib.util.find_spec("zuko"):
        spline[ZUKO] = (Zuko, 5e-3)
    plain = {
        f"NormalizingFlow {name}": (lambda name=name: NormalizingFlow(2, 3, name), 1e-2)
        for name in ACTIVATIONS
    }
    return {**spline, "RealNVP": (lambda: RealNVP(2, n_layers=8, hidden=64), 5e-3), **plain}


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """Return data of deviation 5/3, and by how many nats that lowers the likelihood's negative."""
    scale = 0.6 * math.sqrt(12.5 + 0.1)  # radius 5, variance 0.1
    return x / scale, x.shape[1] * math.log(scale)


def negative_log_likelihood(flow: Any, x: Tensor, cond: Any = None, **_: Any) -> Tensor:
    """Return the mean negative log-density, an objective of `fit`."""
    return -flow.log_prob(x).mean()


def train(make: Callable[[], Any], lr: float, seed: int, steps: int) -> tuple[float, float]:
    """Return the test likelihood's negative in nats, and the processor's seconds of training."""
    torch.manual_seed(seed)
    x, _ = scaled(eight_gaussians(200_000, seed=1))
    start = time.process_time()
    flow = fit(
        make(), x, objective=negative_log_likelihood, steps=steps, batch_size=BATCH, lr=lr,
        lr_schedule="cosine", ema=0.0, seed=seed, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    test, nats = scaled(eight_gaussians(20_000, seed=2))
    with torch.no_grad():
        return negative_log_likelihood(flow, test).item() + nats, seconds


def stepper(make: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that takes ten steps of training."""
    flow = make()
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    x, _ = scaled(eight_gaussians(BATCH))

    def run() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            negative_log_likelihood(flow, x).backward()
            optimizer.step()

    return run


def contest(quick: bool) -> list[dict[str, Any]]:
    """Return one row a flow; the time of a step is taken in turns with zuko's."""
    everybody, steps = contestants(), 100 if quick else STEPS
    rows = []
    for name, (make, lr) in tqdm(everybody.items(), unit="flow"):
        nll, seconds = train(make, lr, seed=0, steps=steps)
        peer = stepper(everybody.get(ZUKO, everybody[SPLINE])[0])
        step, _, ratio = paired_seconds(stepper(make), peer, 3 if quick else 30)
        parameters = sum(p.numel() for p in make().parameters())
        row = {"flow": name, "parameters": parameters, "nll": nll, "training seconds": seconds}
        rows.append(row | {"ms a step": 100 * step, "against the peer": ratio})
    return rows


def ablation(quick: bool) -> list[dict[str, Any]]:
    """Return one row for each activation and number of layers: means over the seeds.

    Seconds are the processor's, so that what else the machine does counts little.
    """
    steps, depths, seeds = (100, (1,), (0,)) if quick else (STEPS, DEPTHS, SEEDS)
    rows = []
    for name in tqdm(ACTIVATIONS, unit="activation"):
        for n_flows in depths:

            def make(name: str = name, n_flows: int = n_flows) -> NormalizingFlow:
                return NormalizingFlow(2, n_flows, name)

            runs = [train(make, 1e-2, seed, steps) for seed in seeds]
            nll, seconds = (statistics.mean(values) for values in zip(*runs, strict=True))
            row = {"activation": name, "n_flows": n_flows, "nll": nll}
            rows.append(row | {"seconds per step": seconds / steps})
    return rows


def measure(quick: bool) -> dict[str, Any]:
    """Return both tables, what they were made with, and the floor on the same test points."""
    floor = -eight_gaussians_log_prob(eight_gaussians(20_000, seed=2)).mean().item()
    options = {"steps": 100 if quick else STEPS, "batch size": BATCH, "seeds": len(SEEDS)}
    missing = [] if importlib.util.find_spec("zuko") else ["zuko"]
    tables = {"flows": contest(quick), "ablation": ablation(quick)}
    return {**options, "missing": missing, "floor": floor, **tables}


def table(results: dict[str, Any]) -> str:
    """Return the contest, then the ablation with a column for each number of layers."""
    head = "nats on test points; the floor is"
    lines = [f"{head} {results['floor']:.4f} (entropy 2.6147)", f"{'':26}{'parameters':>11}"]
    lines[-1] += f"{'nll':>9}{'training s':>12}{'ms a step':>11}{'/ peer':>8}"
    for row in results["flows"]:
        name, parameters, *numbers = row.values()
        nll, seconds, step, ratio = numbers
        lines.append(f"{name:26}{parameters:11d}{nll:9.4f}{seconds:12.1f}{step:11.2f}{ratio:8.2f}")
    depths = sorted({row["n_flows"] for row in results["ablation"]})
    lines += ["", "nll by n_flows".ljust(26) + "".join(f"{depth:9d}" for depth in depths)]
    for name in ACTIVATIONS:
        rows = [row for row in results["ablation"] if row["activation"] == name]
        lines.append(name.ljust(26) + "".join(f"{row['nll']:9.3f}" for row in rows))
    return "\n".join(lines)
