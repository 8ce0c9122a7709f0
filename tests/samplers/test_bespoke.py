"""Fitted solvers: they begin as known ones, and end better on held-out noise."""

import math

import pytest
import torch
from exact import mixture_2d
from torch import nn

from course_lib import VP, Linear, NetDenoiser
from course_lib.samplers import (
    SOLVERS,
    BespokeSolver,
    CountEvaluations,
    cosine_grid,
    fit_bespoke,
    karras_grid,
    lambda_grid,
    optimise_grid,
    sample,
    uniform_grid,
)
from course_lib.samplers.bespoke import _coefficients, _weights
from course_lib.samplers.optimised_grid import Pilot

STARTS = ["ddim", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc"]


def pilot(denoiser, n, seed):
    return Pilot.draw(denoiser, (n, 2), t_max=1.0, t_min=0.0, cond=None, seed=seed)


def error(held_out, solver, ts=None):
    with torch.no_grad():
        return math.exp(held_out.loss(solver, ts).item() / 2)


@pytest.fixture(scope="module")
def fitted():
    return fit_bespoke(mixture_2d(Linear()), (64, 2), 4, iterations=5)


@pytest.mark.parametrize("name", STARTS)
def test_it_begins_as_the_known_solver(path, name):
    """Coefficients read off by unit vectors solve any problem as the solver itself does."""
    mixture, ts = mixture_2d(path), uniform_grid(path, 6)
    weights = _weights(SOLVERS[name], path, ts)
    copy = BespokeSolver(ts, *_coefficients(path, ts, torch.ones(6).double(), weights))
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(copy(mixture, x), SOLVERS[name](mixture, x, ts))


def test_half_the_error_of_the_best_plain_solver_on_held_out_noise():
    path, steps = VP(), 4
    mixture = mixture_2d(path)
    held_out = pilot(mixture, 1000, seed=1)
    plain = [
        error(held_out, SOLVERS[name], grid(path, steps))
        for name in [*STARTS, "deis"]
        for grid in (uniform_grid, cosine_grid, lambda_grid, karras_grid)
    ]
    fitted = fit_bespoke(mixture, (1000, 2), steps, iterations=60, seed=0)
    assert error(held_out, fitted) < min(plain) / 2


def test_on_the_pilot_no_worse_than_the_grid_alone():
    mixture = mixture_2d(Linear())
    ts = optimise_grid(mixture, (64, 2), 5, solver="dpm_solver_pp_2m", iterations=2)
    fitted = fit_bespoke(mixture, (64, 2), 5, start="dpm_solver_pp_2m", iterations=10)
    drawn = pilot(mixture, 64, seed=0)
    assert error(drawn, fitted) < error(drawn, SOLVERS["dpm_solver_pp_2m"], ts)


def test_one_evaluation_a_step_and_a_grid_of_its_own(fitted):
    counted = CountEvaluations(mixture_2d(Linear()))
    seen = []
    x = torch.ones(3, 2, dtype=torch.float64)
    out = fitted(counted, x, callback=lambda i, s, x: seen.append((i, s.item(), x)))
    assert counted.count == 4
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert [s for _, s, _ in seen] == fitted.ts[1:].tolist()
    assert torch.equal(seen[-1][2], out)
    assert fitted.ts[[0, -1]].tolist() == [1.0, 0.0]
    assert torch.equal(fitted.b, fitted.b.tril())
    assert not any(value.requires_grad for value in (fitted.ts, fitted.a, fitted.b))
    with pytest.raises(ValueError, match="has its own grid, to which its 4 steps belong"):
        fitted(counted, x, uniform_grid(Linear(), 4))


def test_sample_takes_a_fitted_solver(fitted, capsys):
    mixture = mixture_2d(Linear())
    states = sample(mixture, (5, 2), solver=fitted, progress=True, return_trajectory=True)
    assert "BespokeSolver: 100%" in capsys.readouterr().err
    assert states.shape == (5, 5, 2)
    torch.testing.assert_close(states[-1], fitted(mixture, states[0]))
    assert torch.equal(
        sample(mixture, (5, 2), solver=SOLVERS["ddim"]), sample(mixture, (5, 2), solver="ddim")
    )


def test_conditions_and_single_precision():
    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return x.tanh() * cond[:, None]

    denoiser = NetDenoiser(Net(), Linear(), "velocity")
    fitted = fit_bespoke(denoiser, (8, 3), 3, iterations=5, cond=torch.ones(8))
    x = sample(denoiser, (4, 3), solver=fitted, cond=torch.ones(4))
    assert x.dtype == torch.float32
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": "heun"}, "start must be ddim, dpm_solver_pp_2m, .*; got heun"),
        ({"start": "euler"}, "an exponential integrator with one evaluation a step; got euler"),
        ({"start": "magic"}, "solver must be one of"),
        ({"steps": 0}, "must be at least 1; got 0"),
        ({"t_max": 2.0}, "0 <= t_min < t_max <= 1"),
    ],
)
def test_bad_options_are_refused(options, match):
    options = {"steps": 3, "iterations": 2, **options}
    with pytest.raises(ValueError, match=match):
        fit_bespoke(mixture_2d(VP()), (8, 2), **options)


def test_bad_calls_are_refused():
    with pytest.raises(TypeError, match="a network becomes one by"):
        fit_bespoke(nn.Linear(2, 2), (8, 2), 4)
    with torch.inference_mode(), pytest.raises(ValueError, match="fit_bespoke differentiates"):
        fit_bespoke(mixture_2d(VP()), (8, 2), 4)
