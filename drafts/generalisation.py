"""Do networks memorise? Transformers on MNIST digits of 8x8 pixels, for growing data and width.

For every n two networks of one width are trained on n digits each, from two halves of MNIST that
have no image in common, and draw N digits from the same noise. Reported are: the share of copies
(a sample three times as near to its nearest training digit as to the second; Yoon et al., 2023),
the mean distance to the nearest training digit, and the mean distance between the two networks'
digits, beside the distance of unrelated ones. Then n is fixed and the width grows; the loss on
training digits and on held-out digits tells when a network begins to copy.

Budgets are equal in optimizer steps. Everything takes some ten minutes on one core.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from course_lib import Linear, NetDenoiser, denoising_loss
from course_lib.data import mnist
from course_lib.nets import DiT
from course_lib.samplers import sample
from course_lib.training import fit

SIZES, WIDTH = (10, 100, 1000, 10_000), 48
WIDTHS, N_WIDTH = (16, 32, 64, 96), 30
STEPS, BATCH, N, SHOWN = 1500, 64, 200, 8
SOLVED = {"solver": "dpm_solver_pp_2m", "steps": 20, "seed": 0}


def measure(quick: bool) -> dict[str, Any]:
    """Copies, distances and losses for every n, and for every width."""
    sizes, widths, steps = (SIZES[:1], WIDTHS[:1], 20) if quick else (SIZES, WIDTHS, STEPS)
    images, held_out = small("train"), small("test")
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    halves = shuffled[:30_000], shuffled[30_000:]
    by_n = [pair(halves, n, steps) for n in tqdm(sizes, desc="n")]
    points = halves[0][:N_WIDTH]
    by_width = [one_width(points, held_out, w, steps) for w in tqdm(widths, desc="width")]
    return {
        "steps": steps, "width": WIDTH, "n_width": N_WIDTH,
        "apart": apart(held_out[:N], held_out[N : 2 * N]),
        "nearest_test": {str(n): neighbours(held_out[:N], halves[0][:n])["nearest"] for n in sizes},
        "copies_test": {str(n): neighbours(held_out[:N], halves[0][:n])["copies"] for n in sizes},
        "by_n": by_n, "by_width": by_width,
    }  # fmt: skip


def small(split: str) -> Tensor:
    """MNIST at 8x8 pixels: four times four pixels become their mean."""
    return avg_pool2d(mnist(split, size=32)[0], 4)


def trained(points: Tensor, width: int, steps: int, seed: int) -> NetDenoiser:
    """A flow of that width, from its own first weights and its own batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DiT(image_size=8, patch=2, dim=width, depth=2, heads=4)
    flow = NetDenoiser(net, Linear(), "velocity", data_std=0.6)
    return fit(
        flow, points, steps=steps, batch_size=BATCH, lr=4e-3, lr_schedule="cosine", ema=0.998,
        seed=seed, progress=False,
    )  # fmt: skip


def pair(halves: tuple[Tensor, Tensor], n: int, steps: int) -> dict[str, Any]:
    """Two networks that saw no common image, from the same noise."""
    drawn = [
        sample(trained(half[:n], WIDTH, steps, seed), (N, 1, 8, 8), **SOLVED)
        for seed, half in enumerate(halves)
    ]
    found = [neighbours(x, half[:n]) for x, half in zip(drawn, halves, strict=True)]
    near = {key: sum(f[key] for f in found) / 2 for key in found[0]}
    images = {
        name: x[:SHOWN].clamp(-1, 1).mul(100).round().div(100).flatten(1).tolist()
        for name, x in zip(("first", "second"), drawn, strict=True)
    }
    return {"n": n, **near, "between": apart(*drawn), "images": images}


def one_width(points: Tensor, held_out: Tensor, width: int, steps: int) -> dict[str, float]:
    """Copies, and the loss on training and on held-out digits."""
    flow = trained(points, width, steps, 0)
    found = neighbours(sample(flow, (N, 1, 8, 8), **SOLVED), points)
    losses = {"train_loss": loss(flow, points), "test_loss": loss(flow, held_out[:1000])}
    return {"width": width, **found, **losses}


def loss(flow: NetDenoiser, images: Tensor, repeats: int = 4000) -> float:
    """Denoising loss, summed over pixels, from the same times and noises for all."""
    generator = torch.Generator().manual_seed(1)
    images = images.repeat(-(-repeats // len(images)), 1, 1, 1)[:repeats]
    with torch.no_grad():
        return 64 * float(denoising_loss(flow, images, generator=generator))


def neighbours(x: Tensor, points: Tensor) -> dict[str, float]:
    """Mean distance to the nearest point, and the share of copies."""
    first, second = torch.cdist(x.flatten(1), points.flatten(1)).topk(2, largest=False)[0].unbind(1)
    return {
        "nearest": first.mean().item(),
        "copies": (first < second / 3).double().mean().item(),
    }


def apart(x: Tensor, y: Tensor) -> float:
    """Mean distance of x_i and y_i."""
    return (x - y).flatten(1).norm(dim=1).mean().item()


def table(values: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'n':>6s}   copies   nearest (test digits)   between the two (unrelated)"]
    for r in values["by_n"]:
        test, other = values["nearest_test"][str(r["n"])], values["apart"]
        row = f"{r['n']:6d}{r['copies']:9.2f}{r['nearest']:10.2f} ({test:.2f})"
        lines.append(f"{row}{r['between']:14.2f} ({other:.2f})")
    lines += ["", f" width   copies (n = {values['n_width']})   training loss   held-out loss"]
    for r in values["by_width"]:
        lines.append(
            f"{r['width']:6d}{r['copies']:9.2f}{r['train_loss']:24.2f}{r['test_loss']:16.2f}"
        )
    return "\n".join(lines)
