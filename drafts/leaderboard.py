"""Every method of the course on one exact mixture and on digits: same network, data and budget.

Each method may take as many optimizer steps as its space allows, those of a teacher included: who
needs a teacher spends half of them on a flow and the rest on what the method does with it. All
have the same network, but for the score flow, which has a flow of about as many parameters.
Everything is run with three seeds, which decide weights, batches and noise.

On the mixture the exact answers are known: W2 and MMD to fresh data, the NLL of fresh data, the
error of the score, and that of the flow map. On digits stand the Frechet distance and the share of
samples that a classifier reads as asked for. The result of each run is kept in `runs/leaderboard`,
so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib import (
    VE,
    CosineVP,
    Denoiser,
    DiscreteVP,
    GaussianMixture,
    Linear,
    NetDenoiser,
    denoising_loss,
    linear_betas,
)
from course_lib.data import digits, eight_gaussians, eight_gaussians_parameters
from course_lib.distillation import (
    ConsistencyDistillation,
    ConsistencyTraining,
    IntervalDenoiser,
    MeanFlowLoss,
    ProgressiveDistillation,
    consistency,
    mean_flow,
)
from course_lib.evaluation import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
    mmd,
    straightness,
    wasserstein2,
)
from course_lib.flows import (
    NeuralSplineFlow,
    ScoreFlowNetwork,
    TransformerFlow,
    direct,
    flow_likelihood,
)
from course_lib.nets import MLP, DiT
from course_lib.samplers import angle_grid, ddim, dpm_solver_pp_2m, euler, log_likelihood, sample
from course_lib.training import fit
from course_lib.transport import MinibatchOT, ReflowTrainer

SEEDS, COUNTS, STAGES, N = (0, 1, 2), (1, 2, 4, 8, 50), (16, 8, 4, 2, 1), 1000
FOLDER = Path(__file__).parent.parent / "runs" / "leaderboard"
Draw = dict[int, tuple[Any, Callable[..., Tensor]]]
"""The model and solver for each number of evaluations."""


@dataclass(frozen=True)
class Space:
    """What is learned, by which network, with how many steps."""

    data: Callable[[str], Any]
    shape: tuple[int, ...]
    net: Callable[[], torch.nn.Module]
    flow: Callable[[], Any]
    std: float
    noise: tuple[float, float]
    steps: int
    pairs: int
    options: dict[str, Any]
    bandwidths: tuple[float, ...]
    labels: int | None = None


def mixture_data(part: str) -> Tensor:
    """Draws of the eight Gaussians: many to train on, N fresh ones to measure with."""
    return eight_gaussians(50_000, seed=1) if part == "train" else eight_gaussians(N, seed=2)


SPACES = {
    "mixture": Space(
        data=mixture_data,
        shape=(2,),
        net=partial(MLP, 2, width=128, depth=3),
        flow=partial(NeuralSplineFlow, 2, n_layers=4, hidden=64, cond_dim=64),
        std=3.55,
        noise=(0.02, 40.0),
        steps=6000,
        pairs=20_000,
        options={"batch_size": 256, "ema": 0.998, "lr_schedule": "cosine", "progress": False},
        bandwidths=(0.5, 2.0, 5.0),
    ),
    "digits": Space(
        data=digits,
        shape=(1, 8, 8),
        net=partial(DiT, image_size=8, patch=2, dim=64, depth=3, heads=4, num_classes=10),
        flow=partial(TransformerFlow, 8, patch=2, dim=64, n_blocks=3, depth=1, cond_dim=64),
        std=0.75,
        noise=(0.02, 10.0),
        steps=1500,
        pairs=5_000,
        options={"batch_size": 64, "ema": 0.998, "lr_schedule": "cosine", "progress": False},
        bandwidths=(2.0, 4.0, 8.0),
        labels=10,
    ),
}
SCRATCH, LATER = 3e-3, 1e-3  # learning rates: from new weights, and from a teacher's


@dataclass
class Entry:
    """A method after training."""

    draw: Draw
    seconds: float
    parameters: int
    ode: Denoiser | None = None
    """What walks an ODE from noise to data at many steps: straightness and NLL."""
    learned: str = ""
    """What has an exact counterpart on the mixture: "score" or "map"."""
    steps: dict[str, int] = field(default_factory=dict)


class Arena:
    """One space and one seed; trains the methods, and times them."""

    def __init__(self, space: Space, seed: int, share: float = 1.0) -> None:
        self.space, self.seed = space, seed
        self.train = space.data("train")
        self.steps, self.pairs = int(space.steps * share), max(100, int(space.pairs * share))
        self._teacher: tuple[Denoiser, float] | None = None

    def new(self, build: Callable[[], Denoiser]) -> Denoiser:
        """A model with the first weights of this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build()

    def net(self, path: Any, predicts: Any) -> Denoiser:
        """The network of the space as a denoiser."""
        return self.new(lambda: NetDenoiser(self.space.net(), path, predicts, self.space.std))

    def fit(
        self, model: Denoiser, objective: Any, steps: int, lr: float = SCRATCH
    ) -> tuple[Any, float]:
        """Train, and return the seconds of processor time that it took."""
        begin = time.process_time()
        options = {"objective": objective, "steps": steps, "lr": lr, "seed": self.seed}
        best = fit(model, self.train, **options, **self.space.options)
        return best.eval(), time.process_time() - begin

    def teacher(self) -> tuple[Denoiser, float]:
        """A flow trained with half of the steps, and the seconds it took."""
        if self._teacher is None:
            self._teacher = self.fit(
                self.net(Linear(), "velocity"), denoising_loss, self.steps // 2
            )
        return self._teacher

    def copied(self) -> Denoiser:
        """A network with the weights of the teacher."""
        model = self.net(Linear(), "velocity")
        model.load_state_dict(self.teacher()[0].state_dict())
        return model

    def conditions(self, n: int, *, generator: torch.Generator) -> Tensor | None:
        """n labels at random, if the space has labels."""
        labels = self.space.labels
        return None if labels is None else torch.randint(labels, (n,), generator=generator)


def size(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def same(model: Any, solver: Callable[..., Tensor]) -> Draw:
    """One model and solver for every number of steps."""
    return dict.fromkeys(COUNTS, (model, solver))


def plain(
    arena: Arena, path: Any, predicts: Any, learned: str = "score", coupling: Any = None
) -> Entry:
    """A denoiser trained by the one loss, drawn with a multistep solver."""
    objective = partial(denoising_loss, coupling=coupling)
    model, seconds = arena.fit(arena.net(path, predicts), objective, arena.steps)
    return Entry(same(model, dpm_solver_pp_2m), seconds, size(model), model, learned)


def score_flow(arena: Arena) -> Entry:
    """A flow for all noise levels: one pass draws directly, more evaluations walk its ODE."""
    space = arena.space
    options: dict[str, Any] = {"num_classes": space.labels, "data_std": space.std}
    build = lambda: ScoreFlowNetwork(space.flow(), VE(*space.noise), **options)  # noqa: E731
    model, seconds = arena.fit(arena.new(build), flow_likelihood, arena.steps, lr=2e-3)
    draw = {**same(model, dpm_solver_pp_2m), 1: (model, direct)}
    return Entry(draw, seconds, size(model), model, "score")


def reflow(arena: Arena, rounds: int) -> Entry:
    """Rounds of reflow from the teacher; they share the second half of the steps."""
    teacher, seconds = arena.teacher()
    begin = time.process_time()
    options: dict[str, Any] = {"steps": 20, "progress": False, "seed": arena.seed}
    conditions = None if arena.space.labels is None else arena.conditions
    trainer = ReflowTrainer(teacher, arena.space.shape, conditions=conditions, **options)
    given = {**arena.space.options, "lr": LATER, "pairs": arena.pairs}
    last = trainer.train_reflow(rounds, steps=arena.steps // 2 // rounds, **given)[-1].denoiser
    seconds += time.process_time() - begin
    return Entry(same(last.eval(), euler), seconds, size(last), last)


def progressive(arena: Arena) -> Entry:
    """Students of 16, 8, 4, 2 steps and one; the stages share the second half of the steps."""
    teacher, seconds = arena.teacher()
    begin = time.process_time()
    run = ProgressiveDistillation(teacher, progress=False)
    options = {**arena.space.options, "lr": LATER, "seed": arena.seed}
    del options["progress"]
    students = run.run(arena.train, STAGES, steps=arena.steps // 2 // len(STAGES), **options)
    seconds += time.process_time() - begin
    draw = {n: (s.eval(), ddim) for n, s in zip(STAGES, students, strict=True) if n in COUNTS}
    return Entry(draw, seconds, size(teacher), learned="map")


def distilled(arena: Arena) -> Entry:
    """Consistency distillation of the teacher."""
    teacher, seconds = arena.teacher()
    objective = ConsistencyDistillation(teacher, segments=16)
    model, more = arena.fit(arena.copied(), objective, arena.steps // 2, lr=LATER)
    return Entry(same(model, consistency), seconds + more, size(model), learned="map")


def consistency_training(arena: Arena) -> Entry:
    """Consistency training, without a teacher."""
    objective = ConsistencyTraining((10, 80))
    model, seconds = arena.fit(arena.net(Linear(), "velocity"), objective, arena.steps)
    return Entry(same(model, consistency), seconds, size(model), learned="map")


def average_velocity(arena: Arena) -> Entry:
    """MeanFlow."""
    build = lambda: IntervalDenoiser(arena.space.net(), Linear(), arena.space.std)  # noqa: E731
    model, seconds = arena.fit(arena.new(build), MeanFlowLoss(), arena.steps)
    return Entry(same(model, mean_flow), seconds, size(model), learned="map")


METHODS: dict[str, Callable[[Arena], Entry]] = {
    "DDPM": lambda a: plain(a, DiscreteVP(linear_betas(1000)), "noise"),
    "v-prediction": lambda a: plain(a, CosineVP(), "v"),
    "score matching": lambda a: plain(a, VE(*a.space.noise), "noise"),
    "rectified flow": lambda a: plain(a, Linear(), "velocity"),
    "OT-CFM": lambda a: plain(a, Linear(), "velocity", "", MinibatchOT(a.space.labels is not None)),
    "score flow": score_flow,
    "reflow 1": partial(reflow, rounds=1),
    "reflow 2": partial(reflow, rounds=2),
    "reflow 3": partial(reflow, rounds=3),
    "progressive": progressive,
    "consistency distillation": distilled,
    "consistency training": consistency_training,
    "MeanFlow": average_velocity,
}


def quality(space: Space, images: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Distances of samples to data that no method has seen."""
    test = space.data("test")
    test = (test[0] if isinstance(test, tuple) else test)[:N]
    rows = (images[: len(test)].flatten(1), test.flatten(1))
    found = {"w2": wasserstein2(*rows), "mmd": mmd(*rows, bandwidth=space.bandwidths)}
    if labels is None:
        return found
    reference = digit_features(space.data("train")[0])
    frechet = frechet_distance(digit_features(images), reference)
    return {**found, "frechet": frechet, "agreement": class_agreement(digit_logits(images), labels)}


def at_counts(space: Space, draw: Draw) -> dict[str, dict[str, float]]:
    """Quality for each number of evaluations, from the same noise for all methods."""
    labels = None if space.labels is None else torch.arange(N) % space.labels
    found = {}
    for count, (model, solver) in draw.items():
        images = sample(model, (N, *space.shape), solver=solver, steps=count, cond=labels, seed=7)
        found[str(count)] = quality(space, images.nan_to_num(0.0), labels)
    return found


def bend(space: Space, model: Denoiser) -> float:
    """Straightness of the ODE's paths, from 50 steps, in the frame where all paths are linear.

    x / (alpha + sigma) at the time sigma / (alpha + sigma) lies on the linear path, whatever the
    schedule. So the number compares what was learned, not how fast the schedule walks.
    """
    labels = None if space.labels is None else torch.arange(N) % space.labels
    ts = angle_grid(model.path, 50)
    options: dict[str, Any] = {"solver": dpm_solver_pp_2m, "ts": ts, "cond": labels, "seed": 7}
    states = sample(model, (N, *space.shape), return_trajectory=True, **options)
    alpha, sigma = model.path.alpha(ts), model.path.sigma(ts)
    frame = (alpha + sigma).reshape(-1, *[1] * (states.ndim - 1)).to(states)
    return straightness(states / frame, sigma / (alpha + sigma))


def score_error(model: Denoiser) -> float:
    """Mean squared error of the noise prediction, against the exact one, at uniform times.

    It is sigma^2 times that of the score; zero for a perfect model, about 1 for one that says 0.
    """
    exact = GaussianMixture(*eight_gaussians_parameters(), model.path)
    generator = torch.Generator().manual_seed(3)
    x0 = eight_gaussians(8000, generator=generator)
    t = model.path.snap(0.02 + 0.96 * torch.rand(len(x0), generator=generator))
    xt = model.path.sample(x0, t, torch.randn(x0.shape, generator=generator))
    with torch.no_grad():
        return float((model.noise(xt, t) - exact.noise(xt, t)).square().mean())


def map_error(draw: Draw) -> float:
    """Mean squared error of one evaluation, against the exact flow map of the linear path."""
    exact = GaussianMixture(*eight_gaussians_parameters(), Linear())
    options: dict[str, Any] = {"seed": 7}
    target = sample(exact, (N, 2), solver="heun", steps=400, **options)
    model, solver = draw[1]
    return float(
        (sample(model, (N, 2), solver=solver, steps=1, **options) - target).square().mean()
    )


def nll(space: Space, model: Denoiser) -> float:
    """Mean of -log p of fresh data, in nats: a flow knows it, the others integrate their ODE."""
    x = space.data("test")
    if isinstance(model, ScoreFlowNetwork):
        with torch.no_grad():
            return -float(model.log_prob(x, torch.zeros(len(x))).mean())
    return -float(log_likelihood(model, x).mean())


def judged(name: str, space: Space, entry: Entry) -> dict[str, Any]:
    """All numbers of one run."""
    row: dict[str, Any] = {"seconds": entry.seconds, "parameters": entry.parameters}
    row["at"] = at_counts(space, entry.draw)
    if entry.ode is not None:
        row["straightness"] = bend(space, entry.ode)
    if name != "mixture":
        return row
    if entry.ode is not None:
        row["nll"] = nll(space, entry.ode)
    if entry.learned == "score" and entry.ode is not None:
        row["score_error"] = score_error(entry.ode)
    if entry.learned == "map":
        row["map_error"] = map_error(entry.draw)
    return row


def run(name: str, method: str, arena: Arena, folder: Path | None) -> dict[str, Any]:
    """One run, or what an earlier one has left in the folder."""
    file = None if folder is None else folder / name / f"{method} {arena.seed}.json"
    if file is not None and file.exists():
        return json.loads(file.read_text())
    row = judged(name, arena.space, METHODS[method](arena))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row))
    return row


def spread(rows: list[Any]) -> Any:
    """The mean over seeds and, where there are several, the standard deviation; key by key."""
    if isinstance(rows[0], dict):
        return {key: spread([row[key] for row in rows]) for key in rows[0]}
    return {
        "mean": statistics.mean(rows), "std": statistics.stdev(rows) if len(rows) > 1 else 0.0
    }  # fmt: skip


def floor(space: Space) -> dict[str, float]:
    """What data score that are not those of the test: the best that a method can hope for."""
    if space.labels is None:
        return quality(space, eight_gaussians(N, seed=3), None)
    images, labels = space.data("test")
    train = space.data("train")
    apart = quality(space, train[0][: len(images)], train[1][: len(images)])
    reference = frechet_distance(digit_features(images), digit_features(train[0]))
    return {
        **apart,
        "frechet": reference,
        "agreement": class_agreement(digit_logits(images), labels),
    }


def measure(quick: bool = False) -> dict[str, Any]:
    """All methods, spaces and seeds."""
    seeds, share, folder = ((0,), 0.01, None) if quick else (SEEDS, 1.0, FOLDER)
    bar = tqdm(total=len(SPACES) * len(seeds) * len(METHODS), desc="leaderboard")
    results: dict[str, Any] = {"seeds": len(seeds), "samples": N, "spaces": {}}
    for name, space in SPACES.items():
        runs: dict[str, list[Any]] = {method: [] for method in METHODS}
        for seed in seeds:
            arena = Arena(space, seed, share)
            for method in METHODS:
                runs[method].append(run(name, method, arena, folder))
                bar.update()
        methods = {method: spread(rows) for method, rows in runs.items()}
        steps = int(space.steps * share)
        results["spaces"][name] = {"steps": steps, "floor": floor(space), "methods": methods}
    return results


def table(values: dict[str, Any]) -> str:
    """The tables as text."""
    lines = []
    for name, space in values["spaces"].items():
        key = "frechet" if name == "digits" else "w2"
        lines.append(f"{name + ', ' + key:28s}" + "".join(f"{f'{n} evals':>16}" for n in COUNTS))
        for method, row in space["methods"].items():
            cells = (row["at"].get(str(n), {}).get(key) for n in COUNTS)
            numbers = (f"{c['mean']:8.2f} ± {c['std']:.2f}" if c else "-" for c in cells)
            lines.append(f"{method:28s}" + "".join(f"{text:>16}" for text in numbers))
        lines.append(f"floor {space['floor'][key]:.2f}")
    return "\n".join(lines)
