"""Reflow: train a flow again on its own pairs of noise and sample, and its paths straighten.

Liu, Gong and Liu, 2023, "Flow straight and fast". Reflow keeps both ends' distributions, no convex
transport cost rises, and the paths become straight. In more than one dimension that does not make
it the optimal transport map: a coupling with straight paths is a fixed point, optimal or not.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.objectives import denoising_loss
from course_lib.paths import Linear
from course_lib.samplers.api import Solver, find_solver
from course_lib.samplers.grids import uniform_grid
from course_lib.samplers.ode import Callback
from course_lib.samplers.sde import (
    ancestral,
    euler_maruyama,
    predictor_corrector,
    sde_dpm_solver_pp_2m,
)
from course_lib.training.batches import Data, step_seed, to_device
from course_lib.training.fit import fit
from course_lib.transport.couplings import fixed_pairs
from course_lib.transport.pairs import Pairs, collect_pairs, tensor_hash, weights_hash
from course_lib.transport.trajectories import path_energy, straightness

__all__ = ["ReflowTrainer", "Round", "one_step", "one_step_loss", "reflow_loss"]

_RANDOM = (ancestral, euler_maruyama, predictor_corrector, sde_dpm_solver_pp_2m)
_DRAWS, _MEASURED = 1_000_000, 2_000_000  # streams of the seed, far from those of fit


@dataclass(frozen=True)
class Round:
    """A flow, and how straight its paths are; all three numbers in squared units of the data.

    Args:
        number: round of reflow that it comes from; 0 is the flow before.
        denoiser: the flow.
        straightness: of its ODE paths, see :func:`straightness`; 0 if one Euler step is exact.
        path_energy: of the same paths, see :func:`path_energy`.
        transport_cost: mean of ``|x0 - eps|^2`` over the ends of the paths, which is the energy
            less the straightness.
    """

    number: int
    denoiser: Denoiser
    straightness: float
    path_energy: float
    transport_cost: float


class ReflowTrainer:
    """Straightens a flow by rounds of reflow, and distils the last into one step.

    Round k draws noise z, follows the flow of round k - 1 from z to a sample, and trains a copy of
    that flow on these pairs: the same z, not new noise (Liu et al., 2023, algorithm 1). Batch b of
    the pairs is a function of (seed, k, b) and of the flow. With a folder a killed run goes on
    where it stopped, with the same result bit for bit on the CPU.

    Args:
        base: the flow to begin with, on the path Linear, predicting "velocity".
        shape: of one sample, such as (2,) or (1, 8, 8).
        source: noise at t = 1, called as ``source(n, generator=generator) -> (n, *shape)``;
            standard normal when left out.
        conditions: called as ``conditions(n, generator=generator)``, gives n rows of what the flow
            takes as condition: a tensor, or a tuple of tensors. None: no condition.
        solver: of the ODE, a name from ``SOLVERS`` or a solver; it must not draw noise.
        steps: its number of steps, of equal length.
        batch_size: samples that go through the solver at once.
        seed: decides noise, conditions and training, at least 0.
        folder: where pairs and checkpoints are kept; None keeps none.
        progress: show progress bars.

    Raises:
        TypeError: if ``base`` is no Denoiser.
        ValueError: if it is on another path or predicts another face, if the solver is unknown or
            draws noise, or if ``steps`` or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        base: Denoiser,
        shape: tuple[int, ...],
        *,
        source: Callable[..., Tensor] | None = None,
        conditions: Callable[..., Any] | None = None,
        solver: str | Solver = "heun",
        steps: int = 50,
        batch_size: int = 1000,
        seed: int = 0,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        _check_flow(base, "base")
        if base.predicts != "velocity":
            raise ValueError(f'base must predict "velocity"; got {base.predicts!r}')
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.base, self.shape = base, tuple(shape)
        self.source, self.conditions = source or self._normal, conditions
        self.solver, self.steps = _deterministic(solver), steps
        self.batch_size, self.seed, self.progress = batch_size, seed, progress
        self.folder = None if folder is None else Path(folder)
        self._last, self._rounds = base, 0

    def generate_pairs(self, n: int, denoiser: Denoiser | None = None, number: int = 1) -> Pairs:
        """Draw noise and follow the flow down to samples, keeping both ends of each path.

        Args:
            n: number of pairs.
            denoiser: the flow; ``base`` when left out. It may predict any face.
            number: of the round; each has its own noise, and its own folder
                ``folder/round_NUMBER/pairs``.

        Returns:
            Pairs of noise and sample, on the CPU.

        Raises:
            TypeError: if ``denoiser`` is no Denoiser.
            ValueError: if it is on another path, n is below 1, the source returns another shape,
                or the folder holds pairs of another recipe; the message says what differs.
            OSError: if a file cannot be written; those before it are intact.
        """
        return self._pairs(n, self.base if denoiser is None else denoiser, number)

    def _pairs(self, n: int, denoiser: Denoiser, number: int, name: str | None = None) -> Pairs:
        _check_flow(denoiser, "denoiser")
        stream = _DRAWS + number

        def make(batch: int, size: int) -> Pairs:
            z, cond = self._draw(denoiser, size, batch, stream)
            return Pairs(self._solve(denoiser, z, cond).cpu(), z.cpu(), to_device(cond, "cpu"))

        folder = self._folder(name or f"round_{number}", "pairs")
        recipe = self._recipe(denoiser, number, *self._draw(denoiser, 2, 0, stream))
        return collect_pairs(
            make, n, self.batch_size, recipe, folder=folder, progress=self.progress
        )

    def _folder(self, *names: str) -> Path | None:
        return None if self.folder is None else self.folder.joinpath(*names)

    def train_reflow(
        self, rounds: int, *, pairs: int = 20_000, steps: int, **options: Any
    ) -> list[Round]:
        """Rounds of reflow, each from the flow of the round before.

        Args:
            rounds: how many.
            pairs: number of pairs of each round.
            steps: optimizer steps of each round.
            options: for ``fit``, such as ``batch_size`` and ``lr``; another ``objective`` must keep
                the coupling :func:`fixed_pairs`.

        Returns:
            One :class:`Round` for each; the flow of the last goes to :meth:`distill`.

        Raises:
            ValueError: if ``rounds`` is below 1, and as :meth:`generate_pairs` and ``fit`` do.
            KeyboardInterrupt: if Ctrl-C stopped the training of a round; with a folder the same
                call goes on from there.
        """
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {rounds}")
        self._last, self._rounds, done = self.base, 0, []
        for number in range(1, rounds + 1):
            data = self._pairs(pairs, self._last, number).data
            name = f"round_{number}"
            self._last = self._trained(name, data, steps, {"objective": reflow_loss, **options})
            self._rounds = number
            done.append(self.measure(self._last, number))
        return done

    def distill(self, *, pairs: int = 20_000, steps: int, **options: Any) -> Denoiser:
        """Train a copy of the last flow to take its whole path in one step.

        The loss is ``|x0 - (eps - u(eps, 1))|^2`` on pairs of that flow (Liu et al., 2023,
        algorithm 1, "Distill"): the one of reflow, at t = 1 alone. See :func:`one_step`.

        Args:
            pairs: number of pairs.
            steps: optimizer steps.
            options: for ``fit``.

        Returns:
            The student, made for t = 1 alone; at other times its velocity means nothing.

        Raises:
            ValueError: as :meth:`generate_pairs` and ``fit`` do.
            KeyboardInterrupt: if Ctrl-C stopped the training.
        """
        name = f"distilled_{self._rounds}"
        data = self._pairs(pairs, self._last, self._rounds + 1, name).data
        return self._trained(name, data, steps, {"objective": one_step_loss, **options})

    def measure(self, denoiser: Denoiser | None = None, number: int = 0, n: int = 1000) -> Round:
        """Straightness, energy and cost of a flow's own ODE paths from fresh noise.

        Args:
            denoiser: the flow; ``base`` when left out.
            number: of the round, noted in the result. The noise is the same for all.
            n: number of paths.

        Raises:
            TypeError: if ``denoiser`` is no Denoiser.
            ValueError: if it is on another path, or n is below 1.
        """
        denoiser = self.base if denoiser is None else denoiser
        _check_flow(denoiser, "denoiser")
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}")
        bent = energy = 0.0
        for batch, start in enumerate(range(0, n, self.batch_size)):
            size = min(self.batch_size, n - start)
            states = self._trajectory(denoiser, *self._draw(denoiser, size, batch, _MEASURED))
            bent += straightness(states) * size / n
            energy += path_energy(states) * size / n
        return Round(number, denoiser, bent, energy, energy - bent)  # the chord's part is the cost

    def _trained(self, name: str, data: Data, steps: int, options: dict[str, Any]) -> Denoiser:
        """A copy of the last flow, trained on its pairs."""
        options = {"seed": self.seed, "progress": self.progress, **options}
        student = fit(
            copy.deepcopy(self._last), data, steps=steps, checkpoint=self._folder(name), **options
        )
        losses: Any = student.losses
        if len(losses) < steps:  # fit has said so; a half-trained flow makes no pairs
            raise KeyboardInterrupt(f"{name} was stopped at step {len(losses)} of {steps}")
        return student

    def _recipe(self, denoiser: Denoiser, number: int, z: Tensor, cond: Any) -> dict[str, Any]:
        """What decides the pairs; z and cond are the first two draws."""
        parts = cond if isinstance(cond, tuple) else () if cond is None else (cond,)
        return {
            "solver": getattr(self.solver, "__name__", type(self.solver).__name__),
            "steps": self.steps,
            "seed": self.seed,
            "round": number,
            "shape": self.shape,
            "weights": weights_hash(denoiser),
            # Functions have no hash; what they draw has.
            "source": tensor_hash({"eps": z}),
            "conditions": tensor_hash({str(i): part for i, part in enumerate(parts)}),
        }

    def _draw(self, denoiser: Denoiser, n: int, batch: int, stream: int) -> tuple[Tensor, Any]:
        """Noise and conditions of a batch, where the denoiser is."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, batch, stream))
        z = self.source(n, generator=generator)
        if z.shape != (n, *self.shape):
            raise ValueError(
                f"source must return shape (n, *shape) = {(n, *self.shape)}; got {tuple(z.shape)}"
            )
        cond = None if self.conditions is None else self.conditions(n, generator=generator)
        reference = next(denoiser.parameters(), next(denoiser.buffers(), torch.empty(0)))
        return z.to(reference), to_device(cond, reference.device)

    def _normal(self, n: int, *, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.shape, generator=generator)

    def _trajectory(self, denoiser: Denoiser, z: Tensor, cond: Any) -> Tensor:
        """All states from z to the sample, shape (steps + 1, B, ...)."""
        states = [z]
        self._solve(denoiser, z, cond, callback=lambda i, s, x: states.append(x))
        return torch.stack(states)

    @torch.no_grad()
    def _solve(
        self, denoiser: Denoiser, z: Tensor, cond: Any, callback: Callback | None = None
    ) -> Tensor:
        """Follow the ODE from z at t = 1 to t = 0, in evaluation mode."""
        training = denoiser.training
        denoiser.eval()
        try:
            ts = uniform_grid(denoiser.path, self.steps)
            return self.solver(denoiser, z, ts, cond=cond, generator=None, callback=callback)
        finally:
            denoiser.train(training)


@torch.no_grad()
def one_step(denoiser: Denoiser, eps: Tensor, cond: Any = None) -> Tensor:
    """Samples in one evaluation, ``eps - velocity(eps, 1)``: Euler's method with one step.

    Args:
        denoiser: a straight flow, or one that was distilled, on the path Linear.
        eps: noise at t = 1, shape (B, ...).
        cond: condition for the denoiser, B rows.

    Returns:
        Samples, shape of ``eps``.

    Raises:
        TypeError: if ``denoiser`` is no Denoiser.
        ValueError: if it is on another path, or shapes do not fit.
    """
    _check_flow(denoiser, "denoiser")
    return eps - denoiser.velocity(eps, eps.new_ones(len(eps)), cond)


def reflow_loss(denoiser: Denoiser, x0: Tensor, cond: Any = None, **options: Any) -> Tensor:
    """The loss of flow matching on pairs that stay together; an objective for ``fit``.

    Args:
        denoiser: the flow.
        x0: data, shape (B, ...).
        cond: the pair (eps, cond) of each, as :attr:`Pairs.data` has it.
        options: for :func:`denoising_loss <course_lib.objectives.denoising_loss>`.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if ``cond`` is no such pair.
    """
    return denoising_loss(denoiser, x0, cond, coupling=fixed_pairs, **options)


def one_step_loss(denoiser: Denoiser, x0: Tensor, cond: Any = None, **options: Any) -> Tensor:
    """The same at t = 1 alone, ``|x0 - (eps - u(eps, 1))|^2`` (Liu et al., 2023, section 2.1).

    Args:
        denoiser: the student of one step, on the path Linear.
        x0: data, shape (B, ...).
        cond: the pair (eps, cond) of each.
        options: for :func:`denoising_loss <course_lib.objectives.denoising_loss>`.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if ``cond`` is no such pair.
    """
    return reflow_loss(denoiser, x0, cond, t=x0.new_ones(len(x0)), **options)


def _check_flow(denoiser: Any, name: str) -> None:
    check_denoiser(denoiser)
    if not isinstance(denoiser.path, Linear):
        raise ValueError(f"{name} must be on the path Linear(); got {denoiser.path}")


def _deterministic(solver: str | Solver) -> Solver:
    """The solver, if it is of the ODE: pairs made by an SDE are not on one path."""
    found = find_solver(solver)
    if found in _RANDOM:
        raise ValueError(
            f"solver must be of the ODE, such as heun; {found.__name__} draws noise on the way"
        )
    return found
