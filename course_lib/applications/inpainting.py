"""Inpainting with a model that was never trained for it: the known part is put in step by step.

A mask is 1 where the image is known and 0 where it is to be drawn. The functions are solvers: they
walk a falling grid of times.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.applications.inputs import check_images, check_mask
from course_lib.applications.particles import systematic_resampling
from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import Path
from course_lib.samplers.api import SOLVERS, Solver, find_solver
from course_lib.samplers.grids import check_grid, knots
from course_lib.samplers.ode import Callback

__all__ = ["filtered", "paste", "renoise", "repaint", "repaint_schedule"]

_MEMORY = ("dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc", "deis", "sde_dpm_solver_pp_2m")


def paste(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    known: Tensor,
    mask: Tensor,
    solver: str | Solver = "ancestral",
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """After each step to time s, put the known part in, noised to s (Song et al., 2021, I.2).

    Fast and biased: a step sees the known part only through the noise of its time, and what it
    has decided by then is hardly revised. :func:`repaint`, of which this is the case r = 1,
    revises it. Arguments, result and errors as there.
    """
    return repaint(
        denoiser, x, ts, known=known, mask=mask, resamples=1, solver=solver, cond=cond,
        generator=generator, callback=callback, **options,
    )  # fmt: skip


def repaint(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    known: Tensor,
    mask: Tensor,
    resamples: int = 10,
    jump: int = 1,
    solver: str | Solver = "ancestral",
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """RePaint (Lugmayr et al., 2022, algorithm 1): go back into the noise, and step again.

    The unknown part was drawn before the known part of the same time was put in. Noise both
    together, step again, and it can adapt. A grid of N steps costs about ``resamples`` N steps.

    Args:
        denoiser: any Denoiser.
        x: noise at time ts[0], shape (B, ...).
        ts: falling times in [0, 1], shape (steps + 1,).
        known: the image, of which only the known part counts; broadcasts to x.
        mask: 1 = known, 0 = to be drawn; broadcasts to x.
        resamples: how often each step is taken, r >= 1.
        jump: how many steps to go back at once, j >= 1.
        solver: name or function of a one-step solver; it draws the unknown part.
        cond: passed to the denoiser.
        generator: source of the noise.
        callback: called after each step as ``callback(i, s, x)``; i counts the steps taken, and
            s is the time that this one reached.
        options: passed to the solver, such as ``eta`` of ddim.

    Returns:
        Samples at time ts[-1], shape (B, ...), in which the known part is that of ``known``
        (with the noise of ts[-1]).

    Raises:
        TypeError: if ``denoiser`` is a bare network, or mask or image are no tensors.
        ValueError: if the mask is not 0/1, a shape does not fit, a known image leaves [-1, 1],
            the grid does not fall, the solver needs the steps before, or ``resamples`` or
            ``jump`` is out of range.
    """
    check_denoiser(denoiser)
    check_grid(ts)
    known, keep = _known(known, x), check_mask(mask, x.shape)
    step, path, taken = _one_step(solver), denoiser.path, 0
    for i, j in pairwise(repaint_schedule(len(ts) - 1, resamples, jump)):
        if j < i:
            x = renoise(path, x, ts[i], ts[j], generator)
            continue
        x = step(denoiser, x, ts[i : j + 1], cond=cond, generator=generator, **options)
        s = ts[j].to(x)  # the level *after* the step
        x = torch.where(keep, _noised(path, known, s, generator), x)
        if callback:
            callback(taken, s, x)
        taken += 1
    return x


@torch.no_grad()
def filtered(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    known: Tensor,
    mask: Tensor,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """A particle filter: the batch is a cloud of guesses for *one* image (Trippe et al., 2023).

    The known part is noised once, along one path. After each step of ``ancestral``, guesses
    that did not foresee the next point of that path are replaced by copies of others that did. So
    the cloud tends to the exact conditional as it and the grid grow, which no number of
    resamplings by :func:`repaint` ensures. With many known numbers a few guesses take all: the
    size that is needed grows exponentially.

    Args:
        denoiser: any Denoiser.
        x: noise at time ts[0], shape (B, ...), one row a guess.
        ts: falling times in [0, 1], shape (steps + 1,), with alpha > 0 but at ts[0].
        known: the image, one for all guesses; only its known part counts.
        mask: 1 = known; broadcasts to x, and is the same for all guesses.
        cond: passed to the denoiser; the same for all guesses.
        generator: source of the randomness.
        callback: called after each step as ``callback(i, s, x)``.

    Returns:
        Guesses at time ts[-1], shape (B, ...), all of one weight.

    Raises:
        TypeError: as :func:`repaint`.
        ValueError: likewise.
    """
    check_denoiser(denoiser)
    check_grid(ts)
    keep, path = check_mask(mask, x.shape), denoiser.path
    walked = [_known(known, x)[:1]]  # x_0, ..., x_1 of the known part
    for s, t in pairwise(ts.flip(0)):
        walked.append(renoise(path, walked[-1], s, t, generator))
    x = torch.where(keep, walked[-1], x)
    for i, (t, s) in enumerate(pairwise(knots(path, x, ts))):
        x0, ratio = denoiser.data(x, t.times, cond), t.alpha / s.alpha
        added = t.sigma**2 - ratio**2 * s.sigma**2  # beta of this step
        mean = ratio * s.sigma**2 / t.sigma**2 * x + s.alpha * added / t.sigma**2 * x0
        missed = torch.where(keep, walked[-2 - i] - mean, 0.0).flatten(1).square().sum(1)
        pick = systematic_resampling(-missed / (2 * added), generator)
        fresh = torch.empty_like(x).normal_(generator=generator)
        x = mean[pick] + (added**0.5 * s.sigma / t.sigma) * fresh
        x = torch.where(keep, walked[-2 - i], x)
        if callback:
            callback(i, s.time, x)
    return x


def repaint_schedule(steps: int, resamples: int, jump: int = 1) -> list[int]:
    """The order in which RePaint visits the points of a grid, from 0 (noise) to ``steps`` (data).

    With jump = 1 every point but the last is reached ``resamples`` times. With longer jumps the
    returns begin at every ``jump``-th point, counted from the last but one
    (Lugmayr et al., 2022, appendix B).

    Raises:
        ValueError: if an argument is below 1, or a jump is longer than the grid allows.
    """
    if min(steps, resamples, jump) < 1:
        raise ValueError(
            f"steps, resamples and jump must be at least 1; got {steps}, {resamples} and {jump}"
        )
    if resamples > 1 and jump >= steps:
        raise ValueError(f"jump must be shorter than the {steps} steps of the grid; got {jump}")
    left = dict.fromkeys(range(steps - 1, jump - 1, -jump), resamples - 1)
    order, i = [0], 0
    while i < steps:
        back = left.get(i, 0) > 0
        if back:
            left[i] -= 1
        i = i - jump if back else i + 1
        order.append(i)
    return order


def renoise(
    path: Path,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from q(x_t | x_s), forward from time s to the later time t; both scalars.

    ``x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z`` with a = alpha_t / alpha_s.

    Raises:
        ValueError: if s > t, or alpha = 0 at s.
    """
    s, t = (torch.as_tensor(value, dtype=torch.float64) for value in (s, t))
    if not bool(s <= t) or not bool(path.alpha(s) > 0):
        raise ValueError(f"s must be at most t, with alpha(s) > 0; got s = {s:.4g}, t = {t:.4g}")
    a = path.alpha(t) / path.alpha(s)
    std = (path.sigma(t) ** 2 - a**2 * path.sigma(s) ** 2).clamp_min(0).sqrt()
    return a.item() * x + std.item() * torch.empty_like(x).normal_(generator=generator)


def _one_step(solver: str | Solver) -> Solver:
    """The solver, if one step of it needs nothing from the steps before."""
    run = find_solver(solver)
    if (name := getattr(run, "__name__", "")) in _MEMORY:
        raise ValueError(
            f"solver must take each step by itself, such as "
            f"{', '.join(n for n in SOLVERS if n not in _MEMORY)}; {name} needs the steps before"
        )
    return run


def _noised(path: Path, known: Tensor, s: Tensor, generator: torch.Generator | None) -> Tensor:
    """The known image at time s, with fresh noise."""
    eps = torch.empty_like(known).normal_(generator=generator)
    return path.sample(known, s.expand(len(known)), eps)


def _known(known: Tensor, x: Tensor) -> Tensor:
    """The known image in the shape of x."""
    check_images(known, "known")
    try:
        return known.to(x).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"known must broadcast to the shape of x, {tuple(x.shape)}; got {tuple(known.shape)}"
        ) from None
