"""Fitted grids: better on held-out noise than plain ones, and never worse than their start."""

import math

import pytest
import torch
from exact import mixture_2d
from torch import nn

from course_lib import VP, CosineVP, DiscreteVP, GaussianMixture, Linear, NetDenoiser, linear_betas
from course_lib.samplers import (
    SOLVERS,
    karras_grid,
    lambda_grid,
    optimise_grid,
    sample,
    uniform_grid,
)
from course_lib.samplers.angles import angle_grid, angle_of_time, time_of_angle
from course_lib.samplers.optimised_grid import Pilot, fit_increments, minimise


def pilot(denoiser, n, seed, t_max=1.0, t_min=0.0):
    return Pilot.draw(denoiser, (n, 2), t_max=t_max, t_min=t_min, cond=None, seed=seed)


def error(held_out, solver, ts):
    """Root mean square of the distance to the exact flow, one coordinate."""
    with torch.no_grad():
        return math.exp(held_out.loss(SOLVERS[solver], ts).item() / 2)


@pytest.mark.parametrize(("t_max", "t_min"), [(1.0, 0.0), (0.9, 0.1)])
def test_the_target_is_the_exact_flow(path, t_max, t_min):
    """One Gaussian: x / sqrt(alpha^2 c + sigma^2) stays as it is along the ODE."""
    c = torch.tensor([0.3, 2.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    gaussian = GaussianMixture(torch.zeros(1, 2).double(), torch.diag(c)[None], one, path)
    drawn = pilot(gaussian, 20, 0, t_max, t_min)
    spread = [
        torch.sqrt(path.alpha(t * one) ** 2 * c + path.sigma(t * one) ** 2) for t in (t_max, t_min)
    ]
    torch.testing.assert_close(drawn.target, drawn.x / spread[0] * spread[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=["VP", "Linear"])
def test_better_than_plain_grids_on_held_out_noise(path):
    mixture, steps = mixture_2d(path), 6
    held_out = pilot(mixture, 1000, seed=1)
    t_max = 1.0 if isinstance(path, VP) else 0.999
    plain = [uniform_grid(path, steps)]
    plain += [grid(path, steps, t_max=t_max) for grid in (lambda_grid, karras_grid)]
    ts = optimise_grid(mixture, (500, 2), steps, iterations=30, seed=0)
    assert error(held_out, "unipc", ts) < 0.8 * min(error(held_out, "unipc", g) for g in plain)


@pytest.mark.parametrize("solver", ["euler", "heun", "ddim", "dpm_solver_pp_2m", "dpm_solver_2"])
def test_never_worse_than_its_start_whatever_the_solver(solver):
    mixture = mixture_2d(VP())
    drawn = pilot(mixture, 64, seed=0)
    ts = optimise_grid(mixture, (64, 2), 5, solver=solver, iterations=5, seed=0)
    starts = [angle_grid(VP(), 5, power=power) for power in (1.0, 1.5, 2.0)]
    assert error(drawn, solver, ts) < min(error(drawn, solver, start) for start in starts)


def test_a_grid_on_every_path(path):
    ts = optimise_grid(mixture_2d(path), (32, 2), 4, iterations=3, t_max=0.99, t_min=0.01)
    assert ts.shape == (5,)
    assert ts.dtype == torch.float64
    assert ts[[0, -1]].tolist() == [0.99, 0.01]
    assert (ts.diff() < 0).all()
    assert not ts.requires_grad


def test_one_step_has_nowhere_to_go():
    assert optimise_grid(mixture_2d(VP()), (8, 2), 1).tolist() == [1.0, 0.0]


def test_networks_keep_no_gradient_and_options_reach_the_solver():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t, cond=None):
            return self.layer(x) * t[:, None].sin() + cond[:, None]

    denoiser = NetDenoiser(Net(), DiscreteVP(linear_betas(1000)), "noise")
    options = {"iterations": 3, "cond": torch.ones(16)}
    with torch.no_grad():  # where learners call it
        ts = optimise_grid(denoiser, (16, 2), 4, order=2, **options)
        other = optimise_grid(denoiser, (16, 2), 4, order=1, **options)
    assert not torch.equal(ts, other)
    assert all(p.grad is None for p in denoiser.parameters())
    x = sample(denoiser, (16, 2), solver="unipc", ts=ts, cond=torch.ones(16))
    assert x.dtype == torch.float32


def test_minimise_finds_the_minimum_and_keeps_the_best():
    target = torch.arange(5, dtype=torch.float64)
    found = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    scale = 10 ** torch.linspace(0, 2, 5, dtype=torch.float64)
    minimise(lambda: (scale * (found - target) ** 2).sum(), [found], 50)
    torch.testing.assert_close(found.detach(), target, rtol=0, atol=1e-4)

    values = iter([3.0, 1.0, *[2.0] * 100])  # the second place is the best, whatever follows
    seen = []

    def loss():
        seen.append(found.detach().clone())
        return (found - target - 1).square().sum() * 0 + next(values) + 1e-3 * found.sum()

    minimise(loss, [found], 3)
    torch.testing.assert_close(found.detach(), seen[1])


def test_angles_and_times_are_inverse(path):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(time_of_angle(path, angle_of_time(path, t)), t)
    angles = angle_of_time(path, angle_grid(path, 6))
    torch.testing.assert_close(angles.diff(), angles.diff().mean().expand(6))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps and iterations must be at least 1; got 0 and 60"),
        ({"iterations": 0}, "got 4 and 0"),
        ({"t_max": 1.5}, "0 <= t_min < t_max <= 1; got 0.0 and 1.5"),
        ({"t_min": 1.0}, "0 <= t_min < t_max <= 1"),
        ({"solver": "magic"}, "solver must be one of euler, .*; got 'magic'"),
        ({"shape": (8, 3)}, r"x must have shape \(B, D\) with D = 2"),
    ],
)
def test_bad_options_are_refused(options, match):
    options = {"shape": (8, 2), "steps": 4, **options}
    with pytest.raises(ValueError, match=match):
        optimise_grid(mixture_2d(VP()), **options)


def test_bad_calls_are_refused():
    with pytest.raises(TypeError, match="a network becomes one by"):
        optimise_grid(nn.Linear(2, 2), (8, 2), 4)
    with torch.inference_mode(), pytest.raises(ValueError, match="optimise_grid differentiates"):
        optimise_grid(mixture_2d(CosineVP()), (8, 2), 4)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        angle_grid(VP(), 0)
    with pytest.raises(ValueError, match="got -1 and"):
        fit_increments(pilot(mixture_2d(VP()), 4, 0), -1, SOLVERS["ddim"], 3)
