"""How a network is told the class: adaLN, concatenation and cross-attention, trained alike.

The network and the recipe are those of `ddpm_cfg_digits`; only the way of the label changes. Each
is trained with several seeds, and judged with and without guidance.
"""

from __future__ import annotations

import statistics
from typing import Any, get_args

import torch
from tqdm import tqdm

from benchmarks.guidance import quality
from course_lib import ClassifierFreeGuidance, DiscreteVP, NetDenoiser, cosine_betas
from course_lib.data import digits
from course_lib.evaluation import digit_features
from course_lib.nets import UNet
from course_lib.nets.embeddings import Conditioning
from course_lib.objectives import ConditionDropout
from course_lib.samplers import sample
from course_lib.training import fit

SCALES = (1.0, 2.0)


def trained(conditioning: Conditioning, steps: int, seed: int) -> NetDenoiser:
    """Train as the recipe does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(width=32, multipliers=(1, 2), num_classes=10, conditioning=conditioning)
    denoiser = NetDenoiser(net, DiscreteVP(cosine_betas(1000)), "v")
    options: dict[str, Any] = {"lr": 3e-3, "lr_schedule": "cosine", "ema": 0.998, "batch_size": 64}
    objective = ConditionDropout(0.1)
    return fit(
        denoiser, digits(), objective=objective, steps=steps, seed=seed, progress=False, **options
    )


@torch.no_grad()
def judged(denoiser: NetDenoiser, n: int) -> dict[str, float]:
    """Return agreement and Frechet distance at each scale."""
    labels, reference = torch.arange(n) % 10, digit_features(digits("train")[0])
    found = {}
    for scale in SCALES:
        guided = ClassifierFreeGuidance(denoiser, scale)
        images = sample(guided, (n, 1, 8, 8), steps=15, cond=labels)
        numbers = quality(images, labels, reference)
        found |= {f"{key}, s={scale:g}": numbers[key] for key in ("agreement", "frechet")}
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Return one row for each way: means over the seeds."""
    steps, seeds, n = (20, 1, 100) if quick else (600, 3, 500)
    rows = []
    for way in tqdm(get_args(Conditioning), unit="way"):
        models = [trained(way, steps, seed) for seed in range(seeds)]
        runs = [judged(model, n) for model in models]
        means = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        size = sum(p.numel() for p in models[0].parameters())
        rows.append({"conditioning": way, "parameters": size, **means})
    return {"steps": steps, "seeds": seeds, "samples": n, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """Return one line for each way."""
    first, *_ = rows = results["rows"]
    cells = [list(first), *([_text(value) for value in row.values()] for row in rows)]
    return "\n".join("".join(f"{cell:>18}" for cell in row) for row in cells)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
