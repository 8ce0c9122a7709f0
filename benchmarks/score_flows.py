"""What can stand in the place of the score network: six flows, a U-Net and a DiT, at equal time.

All learn the same class-conditional, dequantised 8x8 digits for the same seconds of one core, and
are judged alike: by what they cost, by their samples, and by the bits that a test image takes. The
networks live on the cosine path and predict v, the flows on a variance-exploding path. A flow draws
in three ways: by an ODE or an SDE solver, as any denoiser, and in one pass ("direct").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.guidance import quality
from course_lib import VE, CosineVP, Denoiser, NetDenoiser, denoising_loss
from course_lib.data import digits
from course_lib.evaluation import digit_features
from course_lib.flows import (
    LikelihoodAt,
    NeuralSplineFlow,
    NormalizingFlow,
    RealNVP,
    ScoreFlowNetwork,
    TransformerFlow,
    direct,
    flow_likelihood,
)
from course_lib.nets import DiT, UNet
from course_lib.samplers import angle_grid, log_likelihood, sample
from course_lib.training import fit

LEVEL = 1 / 8  # pixels are 0 to 16, as -1, -7/8, ..., 1: one grey level
D, BATCH, STD = 64, 64, 0.75
SOLVERS: dict[str, Any] = {"ODE": "dpm_solver_pp_2m", "SDE": "sde_dpm_solver_pp_2m"}


@dataclass(frozen=True)
class Candidate:
    """A model to be made, and how it is trained and drawn from."""

    make: Callable[[], Denoiser]
    lr: float = 2e-3
    objective: Callable[..., Tensor] = flow_likelihood


def flow(kind: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Denoiser]:
    """Return what makes a score flow for all noise levels."""
    return lambda: ScoreFlowNetwork(
        kind(*args, cond_dim=64, **options), VE(0.02, 5.0), num_classes=10, data_std=STD
    )


def network(kind: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Denoiser]:
    """Return what makes a denoising network."""
    return lambda: NetDenoiser(kind(*args, num_classes=10, **options), CosineVP(), "v", STD)


def one_level() -> Denoiser:
    """Return a transformer flow that knows one noise level, 0.1, as TarFlow does."""
    transformer = TransformerFlow(8, patch=2, dim=64, n_blocks=4, depth=1, cond_dim=64)
    return ScoreFlowNetwork(transformer, VE(0.1, 5.0), num_classes=10, data_std=STD)


CANDIDATES = {
    "NormalizingFlow": Candidate(flow(NormalizingFlow, D, 3, "softplus")),
    "RealNVP": Candidate(flow(RealNVP, D, n_layers=8, hidden=128)),
    "NeuralSplineFlow": Candidate(flow(NeuralSplineFlow, D, n_layers=6, hidden=128)),
    "TransformerFlow": Candidate(flow(TransformerFlow, 8, patch=2, dim=64, n_blocks=4, depth=1)),
    "TransformerFlow, one level": Candidate(one_level, objective=LikelihoodAt(0.0)),
    "U-Net": Candidate(network(UNet, width=32, multipliers=(1, 2)), 3e-3, denoising_loss),
    "DiT": Candidate(network(DiT, 8, dim=64, depth=3), 4e-3, denoising_loss),
}


training_digits = cache(lambda: digits("train"))


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return training images with uniform noise of one grey level, and their labels."""
    images, labels = training_digits()
    i = torch.randint(len(images), (n,), generator=generator)
    return dequantised(images[i], generator), labels[i]


def dequantised(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images with uniform noise of one grey level."""
    return images + LEVEL * (torch.rand(images.shape, generator=generator) - 0.5)


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, which other jobs of the machine do not lengthen."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def saved_megabytes(model: Denoiser, objective: Callable[..., Tensor]) -> float:
    """Return what a training step keeps for the way back: distinct storages, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, so no address is reused
        return x

    x0, labels = batch(BATCH, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        objective(model, x0, labels, generator=torch.Generator().manual_seed(0))
    return sum(s.nbytes() for address, s in kept.items() if address not in weights) / 1e6


def trained(candidate: Candidate, seconds: float) -> tuple[Denoiser, dict[str, float]]:
    """Train for so many seconds of processor time, as a few first steps foretell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = candidate.make()
    memory = saved_megabytes(model, candidate.objective)
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False, "lr": candidate.lr}
    options |= {"objective": candidate.objective, "ema": 0.995, "lr_schedule": "cosine"}
    fit(candidate.make(), batch, steps=1, **options)  # what the first call of all costs
    short, _ = cpu_seconds(lambda: fit(candidate.make(), batch, steps=10, **options))
    long, _ = cpu_seconds(lambda: fit(candidate.make(), batch, steps=40, **options))
    steps = max(1, round(seconds * 30 / (long - short)))
    took, best = cpu_seconds(lambda: fit(model, batch, steps=steps, **options))
    size = sum(p.numel() for p in model.parameters())
    costs = {"parameters": size, "steps": steps, "seconds": took}
    return best.eval(), {**costs, "ms_per_step": 1000 * took / steps, "saved_mb": memory}


def bits_per_dimension(model: Denoiser, images: Tensor, labels: Tensor) -> float:
    """Return bits a pixel of the test images: by the flow, or along the ODE of a network.

    The images are dequantised; a density p of theirs gives at most -log2 p / D - log2(level) bits.
    """
    x = dequantised(images, torch.Generator().manual_seed(0))
    if isinstance(model, ScoreFlowNetwork):
        with torch.no_grad():
            log_prob = model.log_prob(x, torch.zeros(len(x)), labels)
    else:
        ts = angle_grid(model.path, 40, t_min=1e-3)
        options: dict[str, Any] = {"trace": "hutchinson", "cond": labels}
        generator = torch.Generator().manual_seed(0)
        log_prob = log_likelihood(model, x, ts, generator=generator, **options)
    return -log_prob.mean().item() / math.log(2) / D - math.log2(LEVEL)


@torch.no_grad()
def judged(model: Denoiser, solver: Any, n: int, reference: Tensor) -> dict[str, float]:
    """Return seconds for 100 samples, the share that stayed finite, and the quality of n."""
    labels = torch.arange(n) % 10
    options: dict[str, Any] = {"solver": solver, "steps": 20, "cond": labels}
    took, images = cpu_seconds(lambda: sample(model, (n, 1, 8, 8), **options))
    finite = images.flatten(1).isfinite().all(1).double().mean().item()
    numbers = quality(images.nan_to_num(0.0), labels, reference)
    return {"seconds_100": 100 * took / n, "finite": finite, **numbers}


def measure(quick: bool) -> dict[str, Any]:
    """Return one row for each model and way of drawing."""
    seconds, n = (2.0, 100) if quick else (60.0, 297)
    images, labels = (part[:n] for part in digits("test"))
    reference = digit_features(digits("train")[0])
    rows = []
    for name, candidate in tqdm(CANDIDATES.items(), unit="model"):
        model, costs = trained(candidate, seconds)
        is_flow, single = isinstance(model, ScoreFlowNetwork), name.endswith("one level")
        # A flow of one level, with noise in its data, has no density of the data themselves.
        bits = None if single else bits_per_dimension(model, images, labels)
        ways = ({} if single else SOLVERS) | ({"direct": direct} if is_flow else {})
        for way, solver in ways.items():
            row = {"model": name, "way": way, **costs, "bits_per_dim": bits}
            rows.append(row | judged(model, solver, n, reference))
    floor = quality(images, labels, reference)
    return {"budget": seconds, "batch": BATCH, "samples": n, "rows": rows, "floor": floor}


def table(results: dict[str, Any]) -> str:
    """Return one line for each row."""
    rows = results["rows"]
    lines = ["".join(f"{key:>28}" if i == 0 else f"{key:>13}" for i, key in enumerate(rows[0]))]
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("".join(f"{c:>28}" if i == 0 else f"{c:>13}" for i, c in enumerate(cells)))
    return "\n".join(lines)
