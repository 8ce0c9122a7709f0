"""Every method against the exact consistency function of eight Gaussians, which a solver knows."""

import pytest
import torch

from course_lib import GaussianMixture, Linear, NetDenoiser, data
from course_lib.distillation import (
    ConsistencyDistillation,
    ConsistencyTraining,
    IntervalDenoiser,
    MeanFlowLoss,
    ProgressiveDistillation,
    mean_flow_sample,
    multistep,
)
from course_lib.nets import MLP
from course_lib.samplers import ddim, dopri5, heun, uniform_grid
from course_lib.training import fit

SCALE = 12.6**0.5  # brings the data to standard deviation 1
OPTIONS = {"batch_size": 256, "lr": 3e-3, "lr_schedule": "cosine", "ema": 0.99}


def draw(n, generator):
    return data.eight_gaussians(n, generator=generator) / SCALE


@pytest.fixture(scope="module")
def exact():
    """The teacher, noise, and where its exact paths end."""
    means, covs, weights = data.eight_gaussians_parameters()
    teacher = GaussianMixture(means / SCALE, covs / SCALE**2, weights, Linear())
    eps = torch.randn(1000, 2, generator=torch.Generator().manual_seed(-1))
    fine = GaussianMixture(
        means.double() / SCALE, covs.double() / SCALE**2, weights.double(), Linear()
    )
    ends = dopri5(fine, eps.double(), torch.tensor([1.0, 0.0]).double(), rtol=1e-7, atol=1e-7)
    return teacher, eps, ends


def learned(objective, steps, kind=NetDenoiser):
    torch.manual_seed(0)
    net = MLP(2, width=64)
    model = kind(net, Linear()) if kind is IntervalDenoiser else kind(net, Linear(), "velocity")
    return fit(model, draw, objective=objective, steps=steps, progress=False, **OPTIONS)


@pytest.fixture(scope="module")
def distilled(exact):
    """Students of consistency distillation, without the weight and with it."""
    options = {"segments": 8, "t_min": 0.0}
    return [
        learned(ConsistencyDistillation(exact[0], weighted=weighted, **options), 400)
        for weighted in (False, True)
    ]


@torch.no_grad()
def error(exact, ends):
    """Root mean square distance from the exact ends."""
    return (ends - exact[2]).square().sum(1).mean().sqrt().item()


def test_one_step_of_the_exact_teacher_is_far_off(exact):
    teacher, eps, _ = exact
    assert error(exact, ddim(teacher, eps, torch.tensor([1.0, 0.0]))) > 1.3


def test_consistency_distillation(exact, distilled):
    eps, model = exact[1], distilled[1]
    assert error(exact, multistep(model, eps, t_min=0.0)) < 0.2
    generator = torch.Generator().manual_seed(0)
    again = multistep(model, eps, [0.5], t_min=0.0, generator=generator)
    assert error(exact, again) > 0.3  # new noise is another path


def test_the_unit_of_errors_matters(exact, distilled):
    plain, weighted = (error(exact, multistep(m, exact[1], t_min=0.0)) for m in distilled)
    assert weighted < 0.7 * plain


def test_consistency_training(exact):
    model = learned(ConsistencyTraining((8, 64)), 400)
    assert error(exact, multistep(model, exact[1])) < 0.6


def test_progressive_distillation(exact):
    teacher, eps, _ = exact
    torch.manual_seed(0)
    student = NetDenoiser(MLP(2, width=64), Linear(), "velocity")
    run = ProgressiveDistillation(teacher, student=student, progress=False)
    (first,) = run.run(draw, (8,), steps=300, **OPTIONS)
    run = ProgressiveDistillation(first, progress=False)
    students = run.run(draw, (4, 2, 1), steps=80, **OPTIONS)
    for steps, model in zip((4, 2, 1), students, strict=True):
        drawn = ddim(model, eps, torch.linspace(1, 0, steps + 1))
        assert error(exact, drawn) < 0.35


def test_mean_flow(exact):
    """In one step, in four, and as a denoiser: its own velocity, with a solver."""
    model, eps = learned(MeanFlowLoss(), 400, IntervalDenoiser), exact[1]
    for steps in (1, 4):
        assert error(exact, mean_flow_sample(model, eps, steps)) < 0.45
    assert error(exact, heun(model, eps, uniform_grid(Linear(), 20))) < 0.45
