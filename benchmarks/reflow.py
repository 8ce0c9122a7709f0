"""Couplings and reflow on digits: one network, one budget, quality against the number of steps.

Every flow is the transformer of `digits-flow` on the 8x8 digits. Each stage has STEPS optimizer
steps: a base with independent noise, one with minibatch OT, three rounds of reflow from the base,
and a one-step student of round 1. Two more are trained for as long as three stages, so that flows
of an equal number of optimizer steps stand beside each other; making pairs is counted apart.

Quality is the Frechet distance of N samples to the training images, by Euler's method from the
same noise for all. The floor is the distance of the test images. On MNIST the shipped flow and its
reflowed student are compared in the same way, the former with guidance, which takes two evaluations
a step.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib import ClassifierFreeGuidance, Linear, NetDenoiser, denoising_loss
from course_lib.data import digits, mnist
from course_lib.evaluation import class_agreement, digit_features, digit_logits, frechet_distance
from course_lib.nets import DiT
from course_lib.pretrained import load_pretrained
from course_lib.samplers import sample
from course_lib.training import fit
from course_lib.transport import MinibatchOT, ReflowTrainer, Round

STEPS, PAIRS, ROUNDS, N, BATCH = 2500, 10_000, 3, 1000, 64
SOLVED = {"solver": "dpm_solver_pp_2m", "steps": 20}
EULER = (1, 2, 4, 8, 16)
SHAPE = (1, 8, 8)
OPTIONS = {"batch_size": BATCH, "lr_schedule": "cosine", "ema": 0.998, "progress": False}


def trained(images: Tensor, steps: int, coupling: Any = None) -> Any:
    """A flow from scratch; it is given the settings of the recipe `flow_dit_digits`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiT(image_size=8, patch=2, dim=96, depth=4, heads=4)
    flow = NetDenoiser(net, Linear(), "velocity", data_std=0.75)
    objective = partial(denoising_loss, coupling=coupling)
    return fit(flow, images, objective=objective, steps=steps, lr=4e-3, **OPTIONS)


def euler_samples(flow: Any, steps: int, shape: tuple[int, ...], labels: Any = None) -> Tensor:
    """N samples, in parts."""
    parts = []
    for k in range(N // 500):
        cond = None if labels is None else labels[500 * k : 500 * (k + 1)]
        options: dict[str, Any] = {"solver": "euler", "steps": steps, "cond": cond, "seed": k}
        parts.append(sample(flow, (500, *shape), **options))
    return torch.cat(parts)


def quality(flow: Any, features: Tensor, grid: tuple[int, ...] = EULER) -> dict[str, float]:
    """Frechet distance for each number of steps."""
    return {
        str(steps): frechet_distance(digit_features(euler_samples(flow, steps, SHAPE)), features)
        for steps in grid
    }


def row(name: str, flow: Any, trainer: ReflowTrainer, features: Tensor) -> dict[str, Any]:
    """A flow's quality, and how straight it is."""
    found = trainer.measure(flow)
    return {"name": name, "frechet": quality(flow, features), **shape_of(found)}


def shape_of(found: Round) -> dict[str, float]:
    """The three numbers of its paths."""
    return {
        "straightness": found.straightness,
        "path_energy": found.path_energy,
        "transport_cost": found.transport_cost,
    }


def batch_costs(images: Tensor) -> dict[str, float]:
    """Mean of |x0 - eps|^2 under minibatch OT, for several sizes of the batch."""
    generator = torch.Generator().manual_seed(0)
    costs = {}
    for batch in (1, 16, 64, 256, 1024):
        total = 0.0
        for _ in range(4096 // batch):
            index = torch.randint(len(images), (batch,), generator=generator)
            eps = torch.randn(batch, *SHAPE, generator=generator)
            x0, eps, _ = MinibatchOT()(images[index], eps, None)
            total += float((x0 - eps).square().sum())
        costs[str(batch)] = total / (4096 // batch * batch)
    return costs


def on_digits(steps: int, pairs: int) -> dict[str, Any]:
    """All flows on the 8x8 digits."""
    (images, _), (test, _) = digits("train"), digits("test")
    features = digit_features(images)
    bar = tqdm(total=8, desc="reflow: digits")
    base = trained(images, steps)
    bar.update()
    optimal = trained(images, steps, MinibatchOT())
    bar.update()
    trainer = ReflowTrainer(base, SHAPE, progress=False, **SOLVED)
    begin = time.perf_counter()
    trainer.generate_pairs(1000)
    seconds = (time.perf_counter() - begin) * pairs / 1000
    options = {"pairs": pairs, "steps": steps, "lr": 1e-3, **OPTIONS}
    rounds = trainer.train_reflow(ROUNDS, **options)
    bar.update(ROUNDS)
    first = ReflowTrainer(rounds[0].denoiser, SHAPE, progress=False, **SOLVED)
    student = first.distill(**options)
    bar.update()
    rows = [row("base", base, trainer, features), row("minibatch OT", optimal, trainer, features)]
    rows += [
        {"name": f"round {r.number}", "frechet": quality(r.denoiser, features), **shape_of(r)}
        for r in rounds
    ]
    rows.append({"name": "distilled", "frechet": quality(student, features, (1,))})
    for name, coupling in (("base, 3 x", None), ("minibatch OT, 3 x", MinibatchOT())):
        rows.append(row(name, trained(images, 3 * steps, coupling), trainer, features))
        bar.update()
    floor = frechet_distance(digit_features(test), features)
    return {
        "flows": rows, "floor": floor, "pair_seconds": seconds, "batch_costs": batch_costs(images)
    }  # fmt: skip


def on_mnist() -> list[dict[str, Any]]:
    """The shipped flow with guidance, and its reflowed student."""
    images, _ = mnist("test", size=32)
    features = digit_features(images)
    labels = torch.arange(N) % 10
    flows = {
        "mnist-flow-cfg": (ClassifierFreeGuidance(load_pretrained("mnist-flow-cfg"), 1.5), 2),
        "mnist-reflow": (load_pretrained("mnist-reflow"), 1),
    }
    rows = []
    for name, (flow, evaluations) in flows.items():
        for steps in tqdm((1, 2, 4, 8), desc=name):
            drawn = euler_samples(flow, steps, (1, 32, 32), labels)
            rows.append(
                {
                    "name": name,
                    "steps": steps,
                    "evaluations": steps * evaluations,
                    "frechet": frechet_distance(digit_features(drawn), features),
                    "agreement": class_agreement(digit_logits(drawn), labels),
                }
            )
    return rows


def measure(quick: bool = False) -> dict[str, Any]:
    """All tables."""
    steps, pairs = (200, 2000) if quick else (STEPS, PAIRS)
    result = {"steps": steps, "pairs": pairs, "samples": N, **on_digits(steps, pairs)}
    return result if quick else {**result, "mnist": on_mnist()}


def table(values: dict[str, Any]) -> str:
    """The tables as text."""
    head = "".join(f"{f'{n} steps':>10}" for n in EULER)
    lines = [f"{'digits':20s}{head}{'straight':>10}{'energy':>8}"]
    for flow in values["flows"]:
        numbers = "".join(f"{flow['frechet'].get(str(n), float('nan')):10.1f}" for n in EULER)
        shape = f"{flow.get('straightness', 0):10.2f}{flow.get('path_energy', 0):8.1f}"
        lines.append(f"{flow['name']:20s}{numbers}{shape}")
    lines.append(f"floor {values['floor']:.1f}; batch costs {values['batch_costs']}")
    lines += [
        f"{r['name']:16s}{r['steps']:3d} steps {r['frechet']:8.1f} {r['agreement']:.3f}"
        for r in values.get("mnist", [])
    ]
    return "\n".join(lines)
