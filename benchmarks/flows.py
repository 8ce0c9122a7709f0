"""Normalizing flows on eight Gaussians, beside zuko's neural spline flow, and an ablation.

Everybody gets the same points, batches, number of steps, optimiser and schedule. The two spline
flows have as many bins, networks as wide and about as many parameters. Each flow sees the data at
the deviation that suits it best, zuko's, whose splines act on [-5, 5], at 5/3; the scale is put
back into the likelihood. The floor is the entropy.

`pip install zuko` adds the peer; without it its row is left out.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Contestant:
    """How a flow is made, its learning rate, and the deviation of the data that it sees."""

    make: Callable[[], Any]
    lr: float = 1e-2
    deviation: float = 1.0

    def scaled(self, x: Tensor) -> tuple[Tensor, float]:
        """Return data of that deviation, and the nats to add for it."""
        factor = self.deviation / math.sqrt(12.5 + 0.1)  # radius 5, variance 0.1
        return factor * x, -x.shape[1] * math.log(factor)


def plain(activation: str, n_flows: int = 3) -> Contestant:
    """Return the stack of plain layers."""
    return Contestant(lambda: NormalizingFlow(2, n_flows, activation), lr=3e-2)


def contestants() -> dict[str, Contestant]:
    """Return all, by name."""
    spline = Contestant(lambda: NeuralSplineFlow(2, n_layers=4, hidden=64, bins=8, bound=3.0))
    peer = {ZUKO: Contestant(Zuko, deviation=5 / 3)} if importlib.util.find_spec("zuko") else {}
    coupling = Contestant(lambda: RealNVP(2, n_layers=8, hidden=64))
    stacks = {f"NormalizingFlow {name}": plain(name) for name in ACTIVATIONS}
    return {SPLINE: spline, **peer, "RealNVP": coupling, **stacks}


def negative_log_likelihood(flow: Any, x: Tensor, cond: Any = None, **_: Any) -> Tensor:
    """Return the mean negative log-density, an objective of `fit`."""
    return -flow.log_prob(x).mean()


def train(who: Contestant, quick: bool) -> dict[str, float]:
    """Return means over the seeds: nats on test points, and the processor's seconds a step."""
    nlls, seconds, steps = [], [], 100 if quick else STEPS
    x, test = eight_gaussians(200_000, seed=1), eight_gaussians(20_000, seed=2)
    for seed in SEEDS[:1] if quick else SEEDS:
        torch.manual_seed(seed)
        start = time.process_time()
        flow = fit(
            who.make(), who.scaled(x)[0], objective=negative_log_likelihood, steps=steps,
            batch_size=BATCH, lr=who.lr, lr_schedule="cosine", ema=0.0, seed=seed, progress=False,
        )  # fmt: skip
        seconds.append((time.process_time() - start) / steps)
        scaled, nats = who.scaled(test)
        with torch.no_grad():
            nlls.append(negative_log_likelihood(flow, scaled).item() + nats)
    return {"nll": statistics.mean(nlls), "seconds per step": statistics.mean(seconds)}


def stepper(who: Contestant) -> Callable[[], None]:
    """Return a function that takes ten steps of training, with nothing around them."""
    flow = who.make()
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    x, _ = who.scaled(eight_gaussians(BATCH))

    def run() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            negative_log_likelihood(flow, x).backward()
            optimizer.step()

    return run


def contest(quick: bool) -> list[dict[str, Any]]:
    """Return one row a flow; steps are timed in turns with those of zuko's flow."""
    everybody, rows = contestants(), []
    peer = everybody.get(ZUKO, everybody[SPLINE])
    for name, who in tqdm(everybody.items(), unit="flow"):
        step, _, ratio = paired_seconds(stepper(who), stepper(peer), 3 if quick else 10)
        parameters = sum(p.numel() for p in who.make().parameters())
        row = {"flow": name, "parameters": parameters, **train(who, quick)}
        rows.append(row | {"bare step": step / 10, "bare step, share of the peer's": ratio})
    return rows


def ablation(quick: bool) -> list[dict[str, Any]]:
    """Return one row for each activation and number of layers."""
    depths = DEPTHS[:1] if quick else DEPTHS
    cases = [(name, n_flows) for name in ACTIVATIONS for n_flows in depths]
    return [
        {"activation": name, "n_flows": n_flows, **train(plain(name, n_flows), quick)}
        for name, n_flows in tqdm(cases, unit="flow")
    ]


def measure(quick: bool) -> dict[str, Any]:
    """Return both tables, what they were made with, and the floor on the same test points."""
    floor = -eight_gaussians_log_prob(eight_gaussians(20_000, seed=2)).mean().item()
    options = {"steps": 100 if quick else STEPS, "batch size": BATCH, "seeds": len(SEEDS)}
    missing = [] if importlib.util.find_spec("zuko") else ["zuko"]
    tables = {"flows": contest(quick), "ablation": ablation(quick)}
    return {**options, "missing": missing, "floor": floor, **tables}


def table(results: dict[str, Any]) -> str:
    """Return the contest, then the ablation with a column for each number of layers."""
    head = ("parameters", "nll", "training s", "ms a step", "/ peer")
    lines = [
        f"nats on test points; the floor there is {results['floor']:.4f}",
        " " * 26 + "".join(f"{word:>12}" for word in head),
    ]
    for row in results["flows"]:
        name, parameters, nll, seconds, step, ratio = row.values()
        training = seconds * results["steps"]
        lines.append(f"{name:26}{parameters:12d}{nll:12.4f}{training:12.1f}")
        lines[-1] += f"{1000 * step:12.2f}{ratio:12.2f}"
    depths = sorted({row["n_flows"] for row in results["ablation"]})
    lines += ["", "nll by n_flows".ljust(26) + "".join(f"{depth:12d}" for depth in depths)]
    for name in ACTIVATIONS:
        rows = [row for row in results["ablation"] if row["activation"] == name]
        lines.append(name.ljust(26) + "".join(f"{row['nll']:12.3f}" for row in rows))
    return "\n".join(lines)
