"""The count of evaluations against what each solver's algorithm says."""

import pytest
import torch
from exact import mixture_2d
from torch import nn

from course_lib import VP, ClassifierFreeGuidance, GaussianMixture, Linear, NetDenoiser
from course_lib.samplers import (
    CountEvaluations,
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    euler,
    heun,
    sample,
    uniform_grid,
)


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [(ancestral, 7), (ddim, 7), (dpm_solver_pp_2m, 7), (euler, 7), (heun, 13)],
)
def test_solvers_cost_what_their_algorithms_say(solver, evaluations):
    counted = CountEvaluations(mixture_2d(VP()))
    x = torch.ones(3, 2, dtype=torch.float64)
    solver(counted, x, uniform_grid(counted.path, 7))
    assert counted.count == evaluations
    counted.reset()
    assert counted.count == 0


@pytest.mark.parametrize("face", ["noise", "data", "v", "velocity", "score", "predict"])
def test_every_face_is_the_wrapped_one_and_counts_once(face):
    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return x * t[:, None] + (0 if cond is None else cond)

    x, t = torch.ones(3, 2, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    for denoiser in (mixture_2d(VP()), NetDenoiser(Net(), Linear(), "velocity")):
        counted = CountEvaluations(denoiser)
        torch.testing.assert_close(getattr(counted, face)(x, t), getattr(denoiser, face)(x, t))
        assert counted.count == 1
    torch.testing.assert_close(counted.v(x, t, torch.ones(2)), denoiser.v(x, t, torch.ones(2)))


def test_the_count_changes_no_sample():
    mixture = mixture_2d(Linear())
    counted = CountEvaluations(mixture)
    x = sample(counted, (4, 2), steps=5)
    assert x.dtype == torch.float64
    assert torch.equal(x, sample(mixture, (4, 2), steps=5))
    assert counted.count == 5


def test_a_bare_network_is_refused():
    with pytest.raises(TypeError, match="a network becomes one by"):
        CountEvaluations(nn.Linear(2, 2))


def test_guidance_asks_once_for_both_branches():
    means = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    covs, weights = torch.ones(2, 1, 1).double(), torch.ones(2).double()
    mixture = GaussianMixture(means, covs, weights, Linear(), classes=torch.tensor([0, 1]))
    counted, label = CountEvaluations(mixture), torch.zeros(3, dtype=torch.int64)
    guided = ClassifierFreeGuidance(counted, 2.0)
    euler(guided, torch.randn(3, 1).double(), torch.linspace(1, 0, 6), cond=label)
    assert counted.count == 5
