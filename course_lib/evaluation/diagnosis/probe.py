"""What the checks look at: the model, the data at hand, fixed draws, and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, NetDenoiser
from course_lib.paths import Face, Path
from course_lib.samplers.api import Solver, sample
from course_lib.samplers.grids import uniform_grid

__all__ = ["Draws", "Probe", "Use", "data_errors", "errors_by_face", "reaches", "z_score"]

LEVELS = (-2.0, -4 / 3, -2 / 3, 0.0, 2 / 3, 4 / 3, 2.0)
"""Where errors are taken: log(alpha std / sigma). Beyond 2 the noise is under an eighth of the
data's scale and below -2 it drowns the data; every denoiser is nearly right there."""


class Draws(NamedTuple):
    """Data and noise to measure on, the same for all that is compared."""

    x0: Tensor
    """Data, shape (M, ...)."""
    cond: Tensor | None
    """Labels of the data, shape (M,), for a model that takes them."""
    eps: Tensor
    """Noise, shape (M, ...)."""


@dataclass(frozen=True)
class Probe:
    """A model with its data.

    Args:
        denoiser: the model, in evaluation mode.
        x: data, shape (N, ...), on the model's device.
        labels: their labels, shape (N,), or None.
        conditional: whether the model takes the labels.
        history: loss of each training step, shape (S,), or None.
        n: number of samples to draw.
        solver: with which solver.
        steps: in how many steps.
        seed: decides all draws.
        polish: number of training steps that a copy may take.
    """

    denoiser: Denoiser
    x: Tensor
    labels: Tensor | None
    conditional: bool
    history: Tensor | None
    n: int
    solver: str | Solver
    steps: int
    seed: int
    polish: int

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the data, a scalar over all samples and dimensions."""
        return self.x.mean()

    @cached_property
    def std(self) -> float:
        """Standard deviation of the data about its mean in each dimension, one number."""
        return float((self.x - self.x.mean(0)).square().mean().sqrt())

    def count(self, most: int) -> int:
        """How many draws to measure on: all for points; a third for images, which cost more."""
        return most if self.x[0].numel() < 16 else most // 3

    def draws(self, m: int, stream: int = 0) -> Draws:
        """m of the data (again and again, if there are fewer) with noise."""
        generator = self.generator(stream)
        index = torch.randperm(len(self.x), generator=generator)
        index = index.repeat(math.ceil(m / len(index)))[:m].to(self.x.device)
        x0 = self.x[index]
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0)
        cond = self.labels[index] if self.conditional and self.labels is not None else None
        return Draws(x0, cond, eps)

    def generator(self, stream: int) -> torch.Generator:
        """A source of randomness on the CPU; another for each stream."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    @cached_property
    def asked(self) -> Tensor | None:
        """The labels for which samples are drawn, shape (n,): those of random data."""
        if self.labels is None or not self.conditional:
            return None
        index = torch.randint(len(self.labels), (self.n,), generator=self.generator(3))
        return self.labels[index.to(self.labels.device)]

    @cached_property
    def samples(self) -> Tensor:
        """n samples, the first half from one seed and the second from another, shape (n, ...)."""
        half = self.n // 2
        parts = ((slice(0, half), 2 * self.seed), (slice(half, self.n), 2 * self.seed + 1))
        fitted: Tensor | None = getattr(self.solver, "ts", None)  # a fitted solver has its own
        ts = _grid(self.denoiser, self.steps) if fitted is None else fitted
        drawn = [
            sample(
                self.denoiser,
                (len(range(self.n)[part]), *self.x.shape[1:]),
                solver=self.solver,
                ts=ts,
                cond=None if self.asked is None else self.asked[part],
                seed=seed,
            )
            for part, seed in parts
        ]
        return torch.cat(drawn)

    def with_(self, **changes: Any) -> Probe:
        """The same with another model or other data; what was measured is forgotten."""
        return replace(self, **changes)


class _Backwards(Denoiser):
    """A network, or a denoiser, that is told 1 - t."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        if isinstance(model, Denoiser):
            self.path, self.predicts = model.path, model.predicts

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the network says to x at 1 - t."""
        answer: Tensor = self.model(x, 1 - t, cond)
        return answer

    def predict(self, xt: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the denoiser says to x_t at 1 - t."""
        return self.model.predict(xt, 1 - t, cond)


def _grid(denoiser: Denoiser, steps: int) -> Tensor:
    """Equal steps from t = 1, or from just below it where the data do not follow from noise."""
    try:
        denoiser.path.coefficients(torch.ones(1, dtype=torch.float64), denoiser.predicts, "data")
    except ValueError:
        return uniform_grid(denoiser.path, steps, t_max=0.99)  # cosine: alpha is .016 there
    return uniform_grid(denoiser.path, steps)


@dataclass(frozen=True)
class Use:
    """A way to use a network: on which path, as what prediction, with time which way round."""

    path: Path
    predicts: Face
    swapped: bool = False

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, used like this; of one that is no network only the time can be turned."""
        if not isinstance(denoiser, NetDenoiser):
            return _Backwards(denoiser) if self.swapped else denoiser
        net = _Backwards(denoiser.net) if self.swapped else denoiser.net
        return NetDenoiser(net, self.path, self.predicts, denoiser.data_std)


def data_errors(denoiser: Denoiser, draws: Draws, std: float) -> Tensor:
    """Squared error of the data prediction at `LEVELS`, in units of the data's variance; (M,).

    All denoisers see the same signal-to-noise ratios, so that errors compare across paths.
    """
    return errors_by_face(denoiser, (denoiser.predicts,), draws, std)[denoiser.predicts]


@torch.no_grad()
def errors_by_face(
    denoiser: Denoiser, faces: Sequence[Face], draws: Draws, std: float
) -> dict[Face, Tensor]:
    """The same, if what the denoiser predicts were each of the faces."""
    errors: dict[Face, list[Tensor]] = {face: [] for face in faces}
    for level in LEVELS:
        t = _time(denoiser.path, level - math.log(std)).to(draws.x0).expand(len(draws.x0))
        xt = denoiser.path.sample(draws.x0, t, draws.eps)
        said = denoiser.predict(xt, t, draws.cond)
        for face in faces:
            x0 = denoiser.path.convert(said, xt, t, face, "data")
            errors[face].append((x0 - draws.x0).square().flatten(1).mean(1) / std**2)
    return {face: torch.stack(e).mean(0).double().cpu() for face, e in errors.items()}


END = 1e-3
"""How far times stay from 0 and 1, where predictions may be singular."""


def _time(path: Path, lam: float) -> Tensor:
    """The time of a lambda, kept off the ends; shape (1,)."""
    t = path.t_of_lambda(torch.tensor([lam], dtype=torch.float64))
    return path.snap(t.clamp(END, 1 - END))


def reaches(path: Path, std: float) -> bool:
    """Whether a path has all of `LEVELS`; errors at other ratios would not compare."""
    most, least = path.log_snr_half(torch.tensor([END, 1 - END], dtype=torch.float64)) + math.log(
        std
    )
    return bool(most >= LEVELS[-1] and least <= LEVELS[0])


def z_score(differences: Tensor) -> float:
    """Mean over standard error; paired differences give the t statistic of the paired test."""
    error = differences.std() / math.sqrt(len(differences))
    return float(differences.mean() / error.clamp(min=1e-30))
