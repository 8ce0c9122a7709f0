"""Log-densities of exact mixtures, and Hutchinson's estimate against the exact trace."""

import math

import pytest
import torch
from exact import mixture_2d
from torch import nn

from course_lib import CosineVP, DiscreteVP, GaussianMixture, Linear, NetDenoiser, linear_betas
from course_lib.nets import DiT
from course_lib.samplers import CountEvaluations, log_likelihood, uniform_grid


def at(x, t):
    return torch.full((len(x),), t, dtype=x.dtype)


def grid(*ts):
    return torch.tensor(ts, dtype=torch.float64)


@pytest.fixture
def coarse():
    """A cheap grid for tests that compare two runs on it."""
    return grid(1.0, 0.7, 0.4, 0.2, 0.05)


def test_the_exact_mixture_to_a_ten_thousandth_of_a_nat(path, generator):
    mixture = mixture_2d(path)
    x = mixture.sample(64, generator=generator)
    with torch.no_grad():  # where learners call it
        found = log_likelihood(mixture, x, prior=lambda x1: mixture.log_prob(x1, at(x1, 1.0)))
    torch.testing.assert_close(found, mixture.log_prob(x, at(x, 1e-3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", [Linear(), CosineVP()], ids=["Linear", "CosineVP"])
def test_pure_noise_at_the_end_needs_no_other_prior(path, generator):
    """alpha(1) = 0: the Gaussian is exact, and the grid may end at the data."""
    mixture = mixture_2d(path)
    x = mixture.sample(32, generator=generator)
    found = log_likelihood(mixture, x, uniform_grid(path, 200))
    torch.testing.assert_close(found, mixture.log_prob(x), rtol=0, atol=1e-4)


def test_the_gaussian_prior_is_a_small_error_where_alpha_stays_above_zero(path, generator):
    mixture = mixture_2d(path)
    x = mixture.sample(32, generator=generator)
    ts = uniform_grid(path, 100, t_min=0.01)
    gap = log_likelihood(mixture, x, ts) - mixture.log_prob(x, at(x, 0.01))
    assert gap.abs().max() < 0.1


def test_density_of_another_dimension_integrates_to_one():
    """One dimension, part of the path: exp of the answer sums to one over the line."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    covs = torch.full((2, 1, 1), 0.09, dtype=torch.float64)
    mixture = GaussianMixture(means, covs, torch.ones(2, dtype=torch.float64), Linear())
    x = torch.linspace(-3, 3, 241, dtype=torch.float64)[:, None]
    density = log_likelihood(mixture, x, uniform_grid(Linear(), 60)).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(probe, coarse):
    mixture = mixture_2d(Linear())
    x = mixture.sample(3, generator=torch.Generator().manual_seed(2))
    exact = log_likelihood(mixture, x, coarse)
    n, generator = 4000, torch.Generator().manual_seed(3)
    estimates = log_likelihood(
        mixture,
        x.repeat(n, 1),
        coarse,
        trace="hutchinson",
        probe=probe,
        generator=generator,
    ).reshape(n, 3)
    standard_error = estimates.std(0) / math.sqrt(n)
    assert (standard_error > 0).all()
    assert ((estimates.mean(0) - exact).abs() < 4 * standard_error).all()


def test_more_probes_divide_the_variance(coarse):
    mixture = mixture_2d(Linear())
    x = mixture.sample(1, generator=torch.Generator().manual_seed(2)).repeat(4000, 1)

    def variance(probes):
        generator = torch.Generator().manual_seed(0)
        options = {"trace": "hutchinson", "probes": probes, "generator": generator}
        return log_likelihood(mixture, x, coarse, **options).var().item()

    assert variance(1) / variance(4) == pytest.approx(4, rel=0.15)


def test_signs_have_no_variance_where_the_jacobian_is_diagonal(coarse, generator):
    """An isotropic Gaussian: J is a multiple of the identity, and e^T J e = tr J for signs."""
    eye = torch.eye(5, dtype=torch.float64)[None]
    ones = torch.ones(1, dtype=torch.float64)
    gaussian = GaussianMixture(torch.zeros(1, 5, dtype=torch.float64), 0.3 * eye, ones, Linear())
    x = gaussian.sample(4, generator=generator)
    exact = log_likelihood(gaussian, x, coarse)
    signs = log_likelihood(gaussian, x, coarse, trace="hutchinson", generator=generator)
    torch.testing.assert_close(signs, exact)
    options = {"trace": "hutchinson", "probe": "gaussian", "generator": generator}
    assert (log_likelihood(gaussian, x, coarse, **options) - exact).abs().max() > 0.1


def test_fourth_order():
    mixture = mixture_2d(Linear())
    x = mixture.sample(8, generator=torch.Generator().manual_seed(0))
    truth = mixture.log_prob(x, at(x, 0.1))

    def error(n):
        ts = uniform_grid(Linear(), n, t_min=0.1)
        return (log_likelihood(mixture, x, ts) - truth).abs().max().item()

    assert math.log2(error(40) / error(80)) == pytest.approx(4, abs=0.3)


def test_four_evaluations_a_step(coarse):
    counted = CountEvaluations(mixture_2d(Linear()))
    log_likelihood(counted, torch.zeros(2, 2, dtype=torch.float64), coarse)
    assert counted.count == 4 * 4


def test_networks_with_attention_and_conditions():
    """Images under no_grad; the parameters keep no gradient, the answer no graph."""
    torch.manual_seed(0)
    net = DiT(image_size=4, channels=1, patch=2, dim=8, depth=1, heads=2, num_classes=3)
    denoiser = NetDenoiser(net, DiscreteVP(linear_betas(1000)), "noise")
    x, cond = torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])
    with torch.no_grad():
        exact = log_likelihood(denoiser, x, grid(1.0, 0.5, 0.1), cond=cond)
        guess = log_likelihood(denoiser, x, grid(1.0, 0.5, 0.1), cond=cond, trace="hutchinson")
    assert exact.shape == guess.shape == (2,)
    assert exact.isfinite().all()
    assert not exact.requires_grad
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trace": "full"}, "trace must be 'exact' or 'hutchinson'; got 'full'"),
        ({"probe": "sign"}, "probe must be 'rademacher' or 'gaussian'; got 'sign'"),
        ({"probes": 0}, "probes must be at least 1; got 0"),
        ({"ts": grid(0.0, 0.5, 1.0)}, "must fall"),
        ({"ts": grid(1.5, 0.5)}, r"\[0, 1\]"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(mixture_2d(Linear()), torch.zeros(2, 2, dtype=torch.float64), **options)


def test_bad_calls_are_refused():
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="a network becomes one by"):
        log_likelihood(nn.Linear(2, 2), x)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"inference_mode\(\) forbids; call it outside"),
    ):
        log_likelihood(mixture_2d(Linear()), x)
