"""A time grid fitted to a denoiser: the few steps stand where they serve this ODE best.

A pilot batch of noise is solved once with care. Then the grid of a fast solver moves by gradient
descent until the solver's samples come as near to that solution as they can (Watson et al., 2022,
"Learning fast samplers by differentiating through sample quality"; Tong et al., 2025, "Learning
to discretize denoising diffusion ODEs"; Sabour et al., 2024, "Align your steps", bounds the error
instead). The gradient passes through the solver and the denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser, check_gradients
from course_lib.samplers.angles import (
    State,
    angle_grid,
    angle_of_time,
    radius,
    runge_kutta_step,
    time_of_angle,
)
from course_lib.samplers.api import Solver, find_solver, initial_noise

__all__ = ["Pilot", "fit_increments", "minimise", "optimise_grid"]


def optimise_grid(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    steps: int,
    *,
    solver: str | Solver = "unipc",
    iterations: int = 60,
    t_max: float = 1.0,
    t_min: float = 0.0,
    cond: Any = None,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Place the steps of a solver where its error at the end is least.

    Args:
        denoiser: any Denoiser; call ``.eval()`` first.
        shape: shape of the pilot batch, (B, ...). More samples fit more slowly and carry over
            better to other noise.
        steps: number of steps.
        solver: a name from ``SOLVERS`` or a solver, one that draws no noise.
        iterations: steps of L-BFGS; each costs about one run of the solver and its gradient.
        t_max: where the grid starts.
        t_min: where it ends.
        cond: condition for the denoiser, B rows.
        seed: decides the pilot noise.
        options: passed to the solver.

    Returns:
        Falling times, shape (steps + 1,), float64. On a discrete path they may lie between its
        steps.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if the solver is unknown, ``steps`` or ``iterations`` < 1, the ends are not
            0 <= t_min < t_max <= 1, or the call stands inside ``torch.inference_mode()``.
    """
    check_gradients("optimise_grid")
    run = partial(find_solver(solver), **options)
    pilot = Pilot.draw(denoiser, shape, t_max=t_max, t_min=t_min, cond=cond, seed=seed)
    return pilot.grid(fit_increments(pilot, steps, run, iterations))


@dataclass(frozen=True)
class Pilot:
    """A batch of noise at time ``t_max``, and where the exact ODE takes it by ``t_min``."""

    denoiser: Denoiser
    x: Tensor
    target: Tensor
    cond: Any
    t_max: float
    t_min: float

    @classmethod
    def draw(
        cls,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        *,
        t_max: float,
        t_min: float,
        cond: Any,
        seed: int,
    ) -> "Pilot":
        """Draw the noise and solve for it with 240 evaluations."""
        check_denoiser(denoiser)
        ts = angle_grid(denoiser.path, 60, power=2.0, t_max=t_max, t_min=t_min)
        x, _ = initial_noise(denoiser, shape, ts, seed)
        with torch.no_grad():
            return cls(denoiser, x, _exact_flow(denoiser, x, ts, cond), cond, t_max, t_min)

    def grid(self, increments: Tensor) -> Tensor:
        """The grid whose steps in the angle are in the proportions softmax(increments)."""
        path, n = self.denoiser.path, len(increments)
        ends = torch.tensor([self.t_max, self.t_min], dtype=torch.float64)
        high, low = angle_of_time(path, ends)
        lengths = 0.999 * torch.softmax(increments, 0) + 0.001 / n  # none shrinks to nothing
        inner = time_of_angle(path, high - (high - low) * lengths.cumsum(0)[:-1])
        return torch.cat([ends[:1], inner, ends[1:]])

    def loss(self, solver: Solver, ts: Tensor | None = None) -> Tensor:
        """Logarithm of the mean squared error of a solver; Shaul et al. (2024) say PSNR."""
        samples = solver(self.denoiser, self.x, ts, cond=self.cond)
        square = (samples.double() - self.target.double()).square().mean()
        return torch.log(square + torch.finfo(square.dtype).tiny)


def fit_increments(pilot: Pilot, steps: int, solver: Solver, iterations: int) -> Tensor:
    """The increments of the best grid for a solver, shape (steps,), float64.

    Of four plain grids it starts at the best: equal steps in the angle, two that shrink towards the
    data, and one that shrinks towards both ends.

    Raises:
        ValueError: if ``steps`` or ``iterations`` < 1.
    """
    if min(steps, iterations) < 1:
        raise ValueError(f"steps and iterations must be at least 1; got {steps} and {iterations}")

    def loss(increments: Tensor) -> Tensor:
        return pilot.loss(solver, pilot.grid(increments))

    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    plain = (u, u**1.5, u**2, torch.sin(torch.pi / 2 * u) ** 2)
    starts = [torch.log(-grid.diff()) for grid in plain]
    with torch.no_grad():
        increments = min(starts, key=lambda start: loss(start).item())
    if steps > 1:  # one step has nowhere to go
        minimise(lambda: loss(increments), [increments.requires_grad_()], iterations)
    return increments.detach()


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    """Minimise a function of a few numbers with L-BFGS, in place; the best values seen stay."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=iterations, history_size=50, line_search_fn="strong_wolfe"
    )
    least, best = torch.inf, [p.detach().clone() for p in parameters]

    def closure() -> Tensor:
        nonlocal least, best
        value = loss()
        for p, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            p.grad = gradient  # a network's own parameters get none
        if value.item() < least:
            least, best = value.item(), [p.detach().clone() for p in parameters]
        return value

    optimiser.step(closure)  # it enables gradients itself
    with torch.no_grad():
        for p, kept in zip(parameters, best, strict=True):
            p.copy_(kept)


def _exact_flow(denoiser: Denoiser, x: Tensor, ts: Tensor, cond: Any) -> Tensor:
    """Runge-Kutta steps in the angle; a last step to sigma = 0 returns the data prediction."""
    path = denoiser.path

    def rate(state: State, t: Tensor) -> State:
        r = radius(path, t)
        return (denoiser.v(state[0] * r, t.expand(len(x)), cond) / r,)

    ts = ts.to(x)
    y = x / radius(path, ts[0])
    for t, s in pairwise(ts):
        if path.sigma(s) > 0:
            (y,) = runge_kutta_step(rate, path, (y,), t, s)
        else:
            y = denoiser.data(y * radius(path, t), t.expand(len(x)), cond)
    return y * radius(path, ts[-1])
