"""MMD and likelihood against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from course_lib.evaluation import mmd, nll


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_mmd_refuses_unusable_samples():
    x = normal(5, 2)
    with pytest.raises(ValueError, match="same dimension; got 2 and 3"):
        mmd(x, normal(5, 3))
    with pytest.raises(ValueError, match="y must be finite"):
        mmd(x, x / 0)
    with pytest.raises(ValueError, match=r"x must have shape \(N, \.\.\.\)"):
        mmd(x[:, 0], x)
    with pytest.raises(ValueError, match="N >= 2"):
        mmd(x[:0], x)


def gaussian_mmd(shift, std, dimension, width):
    """MMD^2 between N(0, I) and N(shift, std^2 I), from E k of a Gaussian difference."""

    def mean_kernel(squared_shift, variance):
        total = width**2 + variance
        return (width**2 / total) ** (dimension / 2) * math.exp(-squared_shift / (2 * total))

    return (
        mean_kernel(0.0, 2.0)
        + mean_kernel(0.0, 2 * std**2)
        - 2 * mean_kernel(dimension * shift**2, 1 + std**2)
    )


@pytest.mark.parametrize("width", [0.7, 2.0])
def test_mmd_between_gaussians(width):
    x, y = normal(1500, 2), 1.5 * normal(1500, 2, seed=1) + 0.8
    expected = gaussian_mmd(0.8, 1.5, 2, width)
    # the estimate's standard deviation at this size is below 0.008
    assert mmd(x, y, width) == pytest.approx(expected, abs=0.02)


def test_mmd_is_the_u_statistic():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0], [3.0]])

    def kernel(distance):
        return math.exp(-(distance**2) / 2)

    within_x = kernel(1)
    within_y = (kernel(2) + kernel(3) + kernel(1)) / 3
    between = sum(kernel(a - b) for a in (0, 1) for b in (0, 2, 3)) / 6
    assert mmd(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_mmd_averages_bandwidths_and_is_unbiased():
    x, y = normal(100, 2), normal(120, 2, seed=1)
    assert mmd(x, y, [0.5, 2]) == pytest.approx((mmd(x, y, 0.5) + mmd(x, y, 2)) / 2, abs=1e-12)
    # On one distribution an unbiased estimate takes both signs; the biased one never does.
    values = [mmd(normal(20, 1, seed=s), normal(20, 1, seed=s + 50)) for s in range(40)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5


@pytest.mark.parametrize("width", [0.0, -1.0, [], [1.0, 0.0]])
def test_mmd_needs_positive_bandwidths(width):
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        mmd(normal(3, 1), normal(3, 1), width)


def test_mmd_needs_two_samples():
    with pytest.raises(ValueError, match="N >= 2"):
        mmd(normal(1, 1), normal(3, 1))


def test_nll_is_the_entropy_for_the_true_density():
    cov = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    density = MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov)
    x = normal(20_000, 2) @ torch.linalg.cholesky(cov).T
    # the log-density of a Gaussian in D = 2 has variance D / 2 = 1
    assert nll(density.log_prob, x) == pytest.approx(density.entropy().item(), abs=4 / 20_000**0.5)


def test_nll_does_not_depend_on_batches():
    density = Normal(torch.tensor(1.0).double(), torch.tensor(2.0).double())
    x = normal(103)
    expected = -density.log_prob(x).mean().item()
    assert nll(density.log_prob, x, batch_size=10) == pytest.approx(expected, rel=1e-12)


def test_nll_errors():
    with pytest.raises(ValueError, match=r"shape \(B,\) = \(5,\); got \(5, 2\)"):
        nll(lambda x: x, normal(5, 2))
    with pytest.raises(ValueError, match="at least one sample"):
        nll(lambda x: x, normal(0))
