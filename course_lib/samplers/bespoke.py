"""A solver fitted to a denoiser: its grid and all its coefficients are learned together.

Step i of a non-stationary linear multistep solver is
``x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j``, with the data predictions D_j made so far (Shaul et
al., 2024, "Bespoke non-stationary solvers"). DDIM, DPM-Solver++(2M) and UniPC are all of this
kind: their a and b hold for smooth functions in general. For one denoiser and a known number of
evaluations there are better ones, and gradient descent finds them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_gradients
from course_lib.paths import Face, Path
from course_lib.samplers.api import Solver, find_solver
from course_lib.samplers.grids import check_grid
from course_lib.samplers.ode import Callback
from course_lib.samplers.optimised_grid import Pilot, fit_increments, minimise

__all__ = ["BespokeSolver", "fit_bespoke"]


@dataclass(frozen=True)
class BespokeSolver:
    """A fitted solver; call it as any other, or ``sample(denoiser, shape, solver=fitted)``.

    It belongs to the denoiser that it was fitted to, guidance included.
    """

    ts: Tensor
    """Its own grid, falling times, shape (n + 1,)."""
    a: Tensor
    """a_i, the weight of the state x_i in step i, shape (n,)."""
    b: Tensor
    """b_ij, the weight of the data prediction D_j in step i, shape (n, n), zero for j > i."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        ts: Tensor | None = None,
        *,
        cond: Any = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Solve from ts[0] to ts[-1] with n evaluations; arguments as for every solver.

        Raises:
            ValueError: if ``ts`` is another grid than its own.
        """
        if ts is not None and not torch.equal(ts.to(self.ts), self.ts):
            raise ValueError(
                f"a BespokeSolver has its own grid, to which its {len(self.a)} steps belong: "
                f"leave ts out, or fit another; got {ts.tolist()}"
            )
        return _multistep(denoiser, x, self.ts, self.a, self.b, cond, callback)


def fit_bespoke(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    steps: int,
    *,
    start: str | Solver = "unipc",
    iterations: int = 300,
    t_max: float = 1.0,
    t_min: float = 0.0,
    cond: Any = None,
    seed: int = 0,
) -> BespokeSolver:
    """Fit a solver to a denoiser, for a given number of evaluations.

    It starts as a known solver on the grid that suits that best, and on the pilot batch it ends no
    worse. It has about steps^2 / 2 coefficients: with a few hundred points of the plane it learns
    them by heart, with a few thousand it carries over to other noise.

    Args:
        denoiser: any Denoiser; call ``.eval()`` first.
        shape: shape of the pilot batch, (B, ...).
        steps: number of steps, each of one evaluation.
        start: "ddim", "dpm_solver_pp_2m", "dpm_solver_pp_3m" or "unipc".
        iterations: steps of L-BFGS; each costs about one run of the solver and its gradient.
        t_max: where the grid starts.
        t_min: where it ends.
        cond: condition for the denoiser, B rows.
        seed: decides the pilot noise.

    Returns:
        The fitted solver.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if ``start`` is of another kind, ``steps`` or ``iterations`` < 1, the ends are
            not 0 <= t_min < t_max <= 1, or the call stands inside ``torch.inference_mode()``.
    """
    check_gradients("fit_bespoke")
    solver = find_solver(start)
    pilot = Pilot.draw(denoiser, shape, t_max=t_max, t_min=t_min, cond=cond, seed=seed)
    increments = fit_increments(pilot, steps, solver, max(iterations // 5, 1))
    weights = _weights(solver, denoiser.path, pilot.grid(increments))
    learned = [p.requires_grad_() for p in (increments, torch.ones_like(increments), weights)]

    def build() -> BespokeSolver:
        ts = pilot.grid(learned[0])
        return BespokeSolver(ts, *_coefficients(denoiser.path, ts, *learned[1:]))

    minimise(lambda: pilot.loss(build()), learned, iterations)
    with torch.no_grad():
        return build()


def _multistep(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    a: Tensor,
    b: Tensor,
    cond: Any,
    callback: Callback | None,
) -> Tensor:
    """x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j."""
    check_grid(ts)
    ts, seen = ts.to(x), list[Tensor]()
    for i, s in enumerate(ts[1:]):
        seen.append(denoiser.data(x, ts[i].expand(len(x)), cond))
        x = a[i] * x
        for weight, x0 in zip(b[i], seen, strict=False):
            x = x + weight * x0
        if callback:
            callback(i, s, x)
    return x


def _coefficients(
    path: Path, ts: Tensor, factors: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """a and b from numbers of the order of one, which are what is learned."""
    shrink, gain = _exponential(path, ts)
    return factors * shrink, gain[:, None] * weights


def _exponential(path: Path, ts: Tensor) -> tuple[Tensor, Tensor]:
    """What each step does to x and to a constant D (Lu et al., 2022, "DPM-Solver++").

    x_s = sigma_s/sigma_t x_t + (alpha_s - alpha_t sigma_s/sigma_t) D.
    """
    alpha, sigma = path.alpha(ts), path.sigma(ts)
    shrink = sigma[1:] / sigma[:-1]
    return shrink, alpha[1:] - alpha[:-1] * shrink


class _UnitVectors(Denoiser):
    """A stand-in that answers e_1, e_2, ...: started at e_0, a solver shows its coefficients."""

    predicts: Face = "data"

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.states = path, list[Tensor]()

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.states.append(xt)
        return torch.eye(xt.shape[1], dtype=xt.dtype)[len(self.states) % xt.shape[1], None]


def _weights(solver: Solver, path: Path, ts: Tensor) -> Tensor:
    """The weights, shape (n, n), with which :func:`_coefficients` gives a known solver."""
    stand_in, sigma = _UnitVectors(path), path.sigma(ts)
    last = solver(stand_in, torch.eye(len(ts), dtype=ts.dtype)[:1], ts)
    states = torch.cat([*stand_in.states, last])  # row i: x_i in terms of x_0, D_0, D_1, ...
    if len(states) != len(ts) or not torch.allclose(states[:, 0], sigma / sigma[0]):
        raise ValueError(
            f"start must be ddim, dpm_solver_pp_2m, dpm_solver_pp_3m or unipc, an exponential "
            f"integrator with one evaluation a step; got {getattr(solver, '__name__', solver)}"
        )
    shrink, gain = _exponential(path, ts)
    return (states[1:] - shrink[:, None] * states[:-1])[:, 1:] / gain[:, None]
