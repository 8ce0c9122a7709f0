"""Flows on MNIST, each for the same time of one core: bits per dimension, and their samples.

Every flow is class-conditional and knows two noise levels. At t = 0 it learns the images
dequantised, each pixel spread evenly over its grey level, and is judged by the bits that a test
image takes. At t = 1 it learns them with Gaussian noise of deviation 0.15, from which its samples
are drawn, and judged as they come and after one step of denoising, x + sigma^2 score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.guidance import quality
from course_lib import VE
from course_lib.data import mnist
from course_lib.evaluation import digit_features
from course_lib.flows import (
    Flow,
    NeuralSplineFlow,
    NormalizingFlow,
    RealNVP,
    ScoreFlowNetwork,
    TransformerFlow,
    flow_likelihood,
)
from course_lib.training import fit

D, SIDE, LEVEL, SIGMA = 784, 28, 2 / 255, 0.15
PATH = VE(LEVEL / math.sqrt(12), SIGMA)  # at t = 0 the deviation that dequantisation has
FLOWS: dict[str, Callable[[], Flow]] = {
    "NormalizingFlow": lambda: NormalizingFlow(D, 3, "softplus", 64),
    "RealNVP": lambda: RealNVP(D, n_layers=8, hidden=256, cond_dim=64),
    "NeuralSplineFlow": lambda: NeuralSplineFlow(D, n_layers=4, hidden=256, cond_dim=64),
    "TransformerFlow": lambda: TransformerFlow(SIDE, dim=96, n_blocks=4, depth=2, cond_dim=64),
}
BATCH = 64


def dequantised(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return each pixel spread evenly over its grey level."""
    return x0 + LEVEL * (torch.rand(x0.shape, generator=generator) - 0.5)


def both_levels(
    denoiser: ScoreFlowNetwork, x0: Tensor, cond: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Return the mean of the two losses, half of the batch each."""
    x, y = x0.chunk(2), cond.chunk(2)
    likelihood = denoiser.log_prob(dequantised(x[0], generator), torch.zeros(len(x[0])), y[0])
    noisy = flow_likelihood(denoiser, x[1], y[1], t=torch.ones(len(x[1])), generator=generator)
    return (noisy - likelihood.mean() / D) / 2


def trained(make: Callable[[], Flow], seconds: float) -> tuple[ScoreFlowNetwork, int, float]:
    """Return the flow after the steps that fit into the time, their number, and seconds a step."""
    images, labels = mnist("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ScoreFlowNetwork(make(), PATH, num_classes=10, data_std=0.6)

    def run(steps: int, **options: Any) -> ScoreFlowNetwork:
        return fit(denoiser, (images, labels), objective=both_levels, steps=steps,
                   batch_size=BATCH, progress=False, **options)  # fmt: skip

    start = torch.nn.utils.parameters_to_vector(denoiser.parameters()).detach().clone()
    run(5)
    clock = time.perf_counter()
    run(10)
    step = (time.perf_counter() - clock) / 10
    torch.nn.utils.vector_to_parameters(start, denoiser.parameters())
    steps = max(10, int(seconds / step))
    return run(steps, lr=1e-3, lr_schedule="cosine", ema=0.999), steps, step


@torch.no_grad()
def bits_per_dimension(denoiser: ScoreFlowNetwork, images: Tensor, labels: Tensor) -> float:
    """Return the bits that a pixel takes: the density of a grey level times its width, as bits."""
    x = dequantised(images, torch.Generator().manual_seed(0))
    parts = zip(x.split(100), labels.split(100), strict=True)
    nats = torch.cat([denoiser.log_prob(x, torch.zeros(len(x)), y) for x, y in parts]).mean()
    return (-nats.item() / D - math.log(LEVEL)) / math.log(2)


@torch.no_grad()
def samples(denoiser: ScoreFlowNetwork, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return images as they come, those after one step of denoising, and seconds for all."""
    z = torch.randn(len(labels), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    raw, clean, start = [], [], time.perf_counter()
    for part, y in zip(z.split(100), labels.split(100), strict=True):
        t = torch.ones(len(y))
        raw.append(denoiser.from_noise(part, t, y))
        clean.append(denoiser.data(raw[-1], t, y))
    return torch.cat(raw), torch.cat(clean), time.perf_counter() - start


def measure(quick: bool) -> dict[str, Any]:
    """Return one row for each flow."""
    seconds, n = (1.0, 50) if quick else (420.0, 1000)
    images, labels = (part[:n] for part in mnist("test"))
    reference, wanted, rows = digit_features(images), torch.arange(n) % 10, []
    for name, make in tqdm(FLOWS.items(), unit="flow"):
        denoiser, steps, step = trained(make, seconds)
        raw, clean, drawing = samples(denoiser.eval(), wanted)
        before, after = (quality(x, wanted, reference) for x in (raw, clean))
        rows.append({
            "flow": name,
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "steps": steps,
            "seconds a step": step,
            "bits per dimension": bits_per_dimension(denoiser, images, labels),
            "agreement": before["agreement"],
            "agreement, denoised": after["agreement"],
            "frechet": before["frechet"],
            "frechet, denoised": after["frechet"],
            "seconds of drawing": drawing,
        })  # fmt: skip
    floor = quality(*(part[:n] for part in mnist("train")), reference)
    return {"seconds": seconds, "samples": n, "sigma": SIGMA, "floor": floor, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """Return one line for each flow."""
    lines = []
    for row in results["rows"]:
        values = [f"{key} {value:.4g}" for key, value in row.items() if key != "flow"]
        lines.append(f"{row['flow']:18}" + "  ".join(values))
    return "\n".join(lines)
