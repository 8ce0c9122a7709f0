"""Few steps, side by side: one network, one budget of steps, quality against evaluations.

On the 8x8 digits with labels, every method has the transformer of `digits-flow` and STEPS optimizer
steps in all. Who needs a teacher spends half of them on it: a flow, sampled without guidance.
Reflow splits its half between one round and a one-step student, progressive distillation between
five stages. Flow matching, consistency training and MeanFlow train from scratch; consistency
training also begins with the teacher's weights, within the same budget.

Quality is the Frechet distance of N samples to the training images, and the share of them that
the classifier reads as asked for, from the same noise for all. The floor is the distance of the
test images. On MNIST the shipped models are held against the guided flow that taught them, which
takes two evaluations a step.

Trained models are kept in `runs/distillation`, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib import Linear, NetDenoiser, denoising_loss
from course_lib.cli.measuring import measure as quality_of
from course_lib.cli.spaces import SampleSpace
from course_lib.data import digits
from course_lib.distillation import (
    ConsistencyDistillation,
    ConsistencyTraining,
    IntervalDenoiser,
    MeanFlowLoss,
    ProgressiveDistillation,
    consistency,
    mean_flow,
)
from course_lib.evaluation import class_agreement, digit_features, digit_logits, frechet_distance
from course_lib.nets import DiT
from course_lib.pretrained import load_pretrained, pretrained_info
from course_lib.samplers import ddim, euler, sample
from course_lib.training import fit
from course_lib.transport import ReflowTrainer

STEPS, PAIRS, N, BATCH = 3000, 10_000, 1000, 64
COUNTS = (1, 2, 4, 8, 50)
STAGES = (16, 8, 4, 2, 1)
SHAPE = (1, 8, 8)
FOLDER = Path(__file__).parent.parent / "runs" / "distillation"
OPTIONS = {"batch_size": BATCH, "lr_schedule": "cosine", "progress": False}
SCRATCH, LATER = {"lr": 4e-3, "ema": 0.998}, {"lr": 1e-3, "ema": 0.99}
MNIST = {
    "mnist-flow-cfg": ("euler", (1, 2, 4, 8, 25)),
    "mnist-reflow": ("euler", (1, 2, 4)),
    "mnist-consistency": ("consistency", (1, 2, 4)),
    "mnist-progressive": ("ddim", (1,)),
}

Draw = dict[int, tuple[Any, Callable[..., Tensor]]]
"""The model and solver of a method, for each number of steps."""


def network(average: bool = False) -> Any:
    """The denoiser that all methods train, before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiT(image_size=8, patch=2, dim=96, depth=4, heads=4, num_classes=10)
    if average:
        return IntervalDenoiser(net, Linear(), data_std=0.75)
    return NetDenoiser(net, Linear(), "velocity", data_std=0.75)


def copied(teacher: Any) -> Any:
    """A network with the weights of the teacher."""
    model = network()
    model.load_state_dict(teacher.state_dict())
    return model


class Contest:
    """Trains the methods one after the other."""

    def __init__(self, steps: int, pairs: int, folder: Path | None) -> None:
        self.data, self.steps, self.pairs, self.folder = digits("train"), steps, pairs, folder
        self.bar = tqdm(total=8, desc="distillation: digits")

    def at(self, name: str) -> Path | None:
        """Folder of a training."""
        return None if self.folder is None else self.folder / name

    def fit(self, name: str, model: Any, objective: Any, steps: int, **options: Any) -> Any:
        """Train for so many steps; a stopped run goes on."""
        given = {**OPTIONS, **options, "checkpoint": self.at(name)}
        model = fit(model, self.data, objective=objective, steps=steps, **given)
        self.bar.update()
        return model

    def methods(self) -> dict[str, Draw]:
        """Every method, with what draws its samples."""
        half = self.steps // 2
        teacher = self.fit("teacher", network(), denoising_loss, half, **SCRATCH)
        flow = self.fit("flow", network(), denoising_loss, self.steps, **SCRATCH)
        distil, train = ConsistencyDistillation(teacher, segments=16), ConsistencyTraining((10, 80))
        distilled = self.fit("distilled", copied(teacher), distil, half, **LATER)
        alone = self.fit("alone", network(), train, self.steps, **SCRATCH)
        begun = self.fit("begun", copied(teacher), train, half, **LATER)
        average = self.fit("average", network(True), MeanFlowLoss(), self.steps, **SCRATCH)
        return {
            "flow matching": same(flow, euler),
            "reflow": self.reflow(teacher, half),
            "progressive": self.progressive(teacher, half),
            "consistency distillation": same(distilled, consistency),
            "consistency training": same(alone, consistency),
            "consistency training, warm": same(begun, consistency),
            "MeanFlow": same(average, mean_flow),
        }

    def reflow(self, teacher: Any, steps: int) -> Draw:
        """One round and a student of one step, half of the steps each."""
        options = {**OPTIONS, **LATER, "pairs": self.pairs, "steps": steps // 2}

        given: dict[str, Any] = {"conditions": labels_of, "progress": False, "steps": 20}
        trainer = ReflowTrainer(teacher, SHAPE, folder=self.at("reflow"), **given)
        straight = trainer.train_reflow(1, **options)[-1].denoiser
        student = trainer.distill(**options)
        self.bar.update()
        return {**same(straight, euler), 1: (student, euler)}

    def progressive(self, teacher: Any, steps: int) -> Draw:
        """The students of every stage."""
        run = ProgressiveDistillation(teacher, folder=self.at("progressive"), progress=False)
        options = {**OPTIONS, **LATER, "steps": steps // len(STAGES)}
        del options["progress"]
        students = run.run(self.data, STAGES, **options)
        self.bar.update()
        return {n: (model, ddim) for n, model in zip(STAGES, students, strict=True) if n in COUNTS}


def same(model: Any, solver: Callable[..., Tensor]) -> Draw:
    """One model and solver for every number of steps."""
    return dict.fromkeys(COUNTS, (model, solver))


def labels_of(n: int, *, generator: torch.Generator) -> Tensor:
    """n labels at random."""
    return torch.randint(10, (n,), generator=generator)


def judged(draw: Draw, features: Tensor) -> dict[str, dict[str, float]]:
    """Frechet distance and class agreement, for each number of steps."""
    labels, found = torch.arange(N) % 10, {}
    for steps, (model, solver) in draw.items():
        images = sample(model, (N, *SHAPE), solver=solver, steps=steps, cond=labels)
        found[str(steps)] = {
            "frechet": frechet_distance(digit_features(images), features),
            "agreement": class_agreement(digit_logits(images), labels),
        }
    return found


def on_digits(contest: Contest) -> dict[str, Any]:
    """All methods on the 8x8 digits."""
    methods, (test, classes) = contest.methods(), digits("test")
    features = digit_features(contest.data[0])
    return {
        "methods": {name: judged(draw, features) for name, draw in methods.items()},
        "floor": frechet_distance(digit_features(test), features),
        "ceiling": class_agreement(digit_logits(test), classes),
    }


def on_mnist() -> list[dict[str, Any]]:
    """The shipped models of MNIST, judged as `course-lib evaluate` does."""
    rows = []
    for name, (solver, counts) in MNIST.items():
        space, guided = SampleSpace.of(pretrained_info(name)["images"]), name == "mnist-flow-cfg"
        for steps in tqdm(counts, desc=name):
            options = {"solver": solver, "steps": steps, "scale": 1.5 if guided else 1.0}
            found = quality_of(load_pretrained(name), space, **options)
            rows.append({"name": name, **found})
    return rows


def measure(quick: bool = False) -> dict[str, Any]:
    """All tables."""
    steps, pairs, folder = (60, 500, None) if quick else (STEPS, PAIRS, FOLDER)
    result = {"steps": steps, "pairs": pairs, "samples": N}
    result |= on_digits(Contest(steps, pairs, folder))
    return result if quick else {**result, "mnist": on_mnist()}


def table(values: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [f"{'digits':28s}" + "".join(f"{f'{n} steps':>16}" for n in COUNTS)]
    for name, row in values["methods"].items():
        cells = (row.get(str(n)) for n in COUNTS)
        numbers = (f"{c['frechet']:9.1f} {c['agreement']:.3f}" if c else "-" for c in cells)
        lines.append(f"{name:28s}" + "".join(f"{text:>16}" for text in numbers))
    lines.append(f"floor {values['floor']:.1f}, ceiling {values['ceiling']:.3f}")
    lines += [
        f"{r['name']:28s}{r['evaluations']:5.0f} evaluations {r['frechet_test']:8.1f}"
        f" {r['class_agreement']:.3f}"
        for r in values.get("mnist", [])
    ]
    return "\n".join(lines)
