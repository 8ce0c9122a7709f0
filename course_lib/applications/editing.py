"""Edits with an unchanged model: SDEdit, DDIM inversion, and mixtures of noises."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.applications.inputs import check_images
from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import expand
from course_lib.samplers.api import Solver, find_solver
from course_lib.samplers.grids import check_grid, knots, uniform_grid
from course_lib.samplers.ode import Callback

__all__ = ["blend", "invert", "sdedit", "slerp"]


@torch.no_grad()
def sdedit(
    denoiser: Denoiser,
    x0: Tensor,
    t0: float,
    *,
    steps: int = 20,
    solver: str | Solver = "dpm_solver_pp_2m",
    cond: Any = None,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Noise an image to time t0 and denoise it (Meng et al., 2022, algorithm 1).

    Small t0 keeps the image, large t0 gives the model a free hand; t0 = 1 forgets the image.

    Args:
        denoiser: any Denoiser, in its current mode (call ``.eval()`` first).
        x0: the image or guide, shape (B, ...).
        t0: how far into the noise, in (0, 1].
        steps: steps of equal length from t0 to 0.
        solver: a name from ``SOLVERS``, or a solver.
        cond: what the result should be, B rows.
        seed: decides the noise.
        options: passed to the solver.

    Returns:
        Shape (B, ...).

    Raises:
        TypeError: if ``denoiser`` is a bare network, or ``x0`` no tensor.
        ValueError: if ``t0`` lies outside (0, 1], or images leave [-1, 1].
    """
    check_denoiser(denoiser)
    check_images(x0, "x0")
    if not 0 < t0 <= 1:
        raise ValueError(f"t0 must lie in (0, 1]; got {t0}")
    generator = torch.Generator(x0.device).manual_seed(seed)
    ts = uniform_grid(denoiser.path, steps, t_max=t0)
    eps = torch.empty_like(x0).normal_(generator=generator)
    xt = denoiser.path.sample(x0, ts[0].to(x0).expand(len(x0)), eps)
    return find_solver(solver)(denoiser, xt, ts, cond=cond, generator=generator, **options)


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x0: Tensor,
    ts: Tensor,
    *,
    refine: int = 0,
    cond: Any = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM inversion: the noise from which :func:`~course_lib.samplers.ddim` draws this image.

    A step of DDIM from t to s is ``x_s = alpha_s/alpha_t x_t + b eps(x_t, t)``. Backwards it asks
    for eps at the x_t that it is looking for. DDIM inversion asks at (x_s, s) in its place, an
    error of order h in all (Dhariwal & Nichol, 2021, appendix F; Song et al., 2021, section 4.3).
    Each refinement asks again, at the x_t found last; where the step contracts they converge to
    the exact inverse of DDIM (Pan et al., 2023).

    Args:
        denoiser: any Denoiser.
        x0: the image, at time ts[-1], shape (B, ...).
        ts: the grid on which DDIM is to draw, falling, shape (steps + 1,); walked from its end.
        refine: refinements of each step; each costs an evaluation.
        cond: passed to the denoiser.
        callback: called after each step as ``callback(i, t, x)``.

    Returns:
        The state at time ts[0], shape (B, ...).

    Raises:
        TypeError: if ``denoiser`` is a bare network, or ``x0`` no tensor.
        ValueError: if the grid does not fall, alpha is 0 before its last time, ``refine`` is
            negative, or images leave [-1, 1].
    """
    check_denoiser(denoiser)
    check_images(x0, "x0")
    check_grid(ts)
    if refine < 0:
        raise ValueError(f"refine must be at least 0; got {refine}")
    points, x = knots(denoiser.path, x0, ts)[::-1], x0
    for i, (s, t) in enumerate(pairwise(points)):
        a = t.alpha / s.alpha
        b = t.sigma - a * s.sigma
        base, eps = a * x, denoiser.noise(x, s.times, cond)
        for _ in range(refine):
            eps = denoiser.noise(base + b * eps, t.times, cond)
        x = base + b * eps
        if callback:
            callback(i, t.time, x)
    return x


def slerp(a: Tensor, b: Tensor, u: float | Tensor) -> Tensor:
    """From a to b along the arc between them (Shoemake, 1985): each sample one vector.

    ``[sin((1-u) theta) a + sin(u theta) b] / sin theta`` with the angle theta between them. Where
    they are parallel there is no arc, and the result is the straight line.

    Args:
        a: shape (B, ...).
        b: the same shape.
        u: where, 0 is a and 1 is b; a number, or one for each sample, shape (B,).

    Raises:
        ValueError: if shapes do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    u = torch.as_tensor(u).to(a)
    u = expand(u.expand(len(a)) if u.ndim == 0 else u, a)
    one, other = (torch.nn.functional.normalize(v.flatten(1), dim=1) for v in (a, b))
    theta = expand(torch.acos((one * other).sum(1).clamp(-1, 1)), a)
    arc = (torch.sin((1 - u) * theta) * a + torch.sin(u * theta) * b) / torch.sin(theta)
    return torch.where(torch.sin(theta) < 1e-6, torch.lerp(a, b, u.expand_as(a)), arc)


def blend(noises: Tensor, weights: Tensor | list[float]) -> Tensor:
    """``sum_i w_i z_i / |w|``: for independent standard normal z_i again standard normal, exactly.

    Args:
        noises: z_1 ... z_n, shape (n, B, ...).
        weights: w, shape (n,), not all zero.

    Raises:
        ValueError: if there is not one weight for each noise, or all are 0.
    """
    w = torch.as_tensor(weights).to(noises)
    if w.shape != noises.shape[:1] or not float(w.norm()) > 0 or not math.isfinite(w.norm()):
        raise ValueError(
            f"weights must be {noises.shape[0]} numbers, one for each noise, not all 0; "
            f"got {w.tolist()}"
        )
    return torch.tensordot(w / w.norm(), noises, dims=1)
