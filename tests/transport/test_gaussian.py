"""Transport between Gaussians against POT, against closed forms and against what defines it."""

import math

import numpy as np
import ot
import pytest
import torch
from linear_flows import SOURCE, TARGET

from course_lib.transport import entropic_gaussian, gaussian_map, gaussian_wasserstein2


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_gaussians_with_commuting_covariances():
    # For diagonal covariances W2^2 is |m|^2 plus the squared differences of standard deviations.
    value = gaussian_wasserstein2(
        double([1.0, 0.0, 0.0]), torch.diag(double([4.0, 1.0, 0.0])),
        double([0.0, 2.0, 0.0]), torch.diag(double([1.0, 9.0, 4.0])),
    )  # fmt: skip
    assert value**2 == pytest.approx(1 + 4 + 1 + 4 + 4, rel=1e-12)


def test_gaussians_of_the_course_example():
    # From N(0, diag(4, .25)) to N(0, [[1, .9], [.9, 2]]): W2^2 = 2.0802.
    zero = torch.zeros(2)
    value = gaussian_wasserstein2(
        zero, torch.diag(torch.tensor([4.0, 0.25])), zero, torch.tensor([[1.0, 0.9], [0.9, 2.0]])
    )
    assert value**2 == pytest.approx(2.0802, abs=5e-5)


def test_gaussians_agree_with_pot():
    a, b = normal(5, 5), normal(5, 5, seed=1)
    mean_a, mean_b = normal(5, seed=2), normal(5, seed=3)
    expected = ot.gaussian.bures_wasserstein_distance(mean_a, mean_b, a @ a.T, b @ b.T)
    value = gaussian_wasserstein2(mean_a, a @ a.T, mean_b, b @ b.T)
    assert value == pytest.approx(float(expected), rel=1e-6)


def moments(dim=4, seed=0):
    """Two means and two covariances, without any structure."""
    a, b = normal(dim, dim, seed=seed), normal(dim, dim, seed=seed + 1)
    return normal(dim, seed=seed + 2), a @ a.T, normal(dim, seed=seed + 3), b @ b.T


def test_map_agrees_with_pot():
    mean_x, cov_x, mean_y, cov_y = moments()
    a, b = gaussian_map(mean_x, cov_x, mean_y, cov_y)
    expected_a, expected_b = ot.gaussian.bures_wasserstein_mapping(mean_x, mean_y, cov_x, cov_y)
    torch.testing.assert_close(a, expected_a, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b, expected_b.squeeze(0), rtol=1e-6, atol=1e-8)


def test_map_moves_one_gaussian_to_the_other_at_the_least_cost():
    mean_x, cov_x, mean_y, cov_y = moments(seed=7)
    a, b = gaussian_map(mean_x, cov_x, mean_y, cov_y)
    torch.testing.assert_close(a @ cov_x @ a.T, cov_y)
    torch.testing.assert_close(a @ mean_x + b, mean_y)
    torch.testing.assert_close(a, a.T)
    assert torch.linalg.eigvalsh(a)[0] > 0
    gap = torch.eye(4, dtype=torch.float64) - a
    cost = torch.trace(gap @ cov_x @ gap.T) + (mean_x - mean_y).square().sum()
    distance = gaussian_wasserstein2(mean_x, cov_x, mean_y, cov_y)
    assert cost.item() == pytest.approx(distance**2, rel=1e-9)


def test_map_to_a_singular_gaussian_is_a_projection_and_dtype_is_kept():
    zero, flat = torch.zeros(2), torch.diag(torch.tensor([4.0, 0.0]))
    a, b = gaussian_map(zero, torch.eye(2), zero + 1, flat)
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(a, torch.diag(torch.tensor([2.0, 0.0])))
    torch.testing.assert_close(b, torch.ones(2))


def test_entropic_plan_agrees_with_sinkhorn_on_a_grid():
    """POT's plan between two Gaussians on a fine grid of the line; the same cost and divergence."""
    x = np.linspace(-9, 9, 601)
    mean_x, std_x, mean_y, std_y, epsilon = -0.5, 1.0, 1.0, 1.5, 0.8

    def masses(mean, std):
        density = np.exp(-(((x - mean) / std) ** 2) / 2)
        return density / density.sum()

    a, b, costs = masses(mean_x, std_x), masses(mean_y, std_y), (x[:, None] - x) ** 2
    plan = ot.sinkhorn(a, b, costs, epsilon, method="sinkhorn_log", stopThr=1e-12)
    ours = entropic_gaussian(
        double([mean_x]), double([[std_x**2]]), double([mean_y]), double([[std_y**2]]), epsilon
    )
    assert ours.transport_cost == pytest.approx((plan * costs).sum(), rel=1e-5)
    covariance = ((x - mean_x)[:, None] * (x - mean_y) * plan).sum()
    assert ours.cross_covariance.item() == pytest.approx(covariance, rel=1e-5)
    positive = plan > 0
    divergence = (plan * np.log(plan / (a[:, None] * b), where=positive, out=0 * plan)).sum()
    expected = (plan * costs).sum() + epsilon * divergence
    assert ours.entropic_cost == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 20.0])
def test_entropic_plan_has_the_form_that_makes_it_optimal(epsilon):
    """Its density is f(x) g(y) exp(-|x - y|^2 / epsilon): x and y meet in 2 x.y / epsilon alone."""
    mean_x, cov_x, mean_y, cov_y = moments(3, seed=4)
    plan = entropic_gaussian(mean_x, cov_x, mean_y, cov_y, epsilon)
    cross = plan.cross_covariance
    joint = torch.cat([torch.cat([cov_x, cross], 1), torch.cat([cross.T, cov_y], 1)])
    precision = torch.linalg.inv(joint)
    off = -2 / epsilon * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(precision[:3, 3:], off, rtol=1e-6, atol=1e-6 / epsilon)
    shift = (mean_x - mean_y).square().sum()
    cost = shift + torch.trace(cov_x + cov_y - 2 * cross)
    assert plan.transport_cost == pytest.approx(cost.item(), rel=1e-10)
    # KL(P | a x b) of a Gaussian is its mutual information.
    information = 0.5 * (torch.logdet(cov_x) + torch.logdet(cov_y) - torch.logdet(joint))
    expected = cost + epsilon * information
    assert plan.entropic_cost == pytest.approx(expected.item(), rel=1e-8)


def test_entropic_costs_go_from_optimal_to_independent():
    zero = torch.zeros(2, dtype=torch.float64)
    plans = [entropic_gaussian(zero, SOURCE, zero, TARGET, e) for e in (1e-7, 0.1, 1, 10, 1e8)]
    costs = [plan.transport_cost for plan in plans]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(2.0802, abs=5e-5)
    assert costs[-1] == pytest.approx(7.25, abs=1e-6)
    assert plans[0].entropic_cost == pytest.approx(2.0802, abs=5e-5)
    assert plans[-1].entropic_cost == pytest.approx(7.25, abs=1e-6)
    assert all(plan.entropic_cost > plan.transport_cost for plan in plans)


def test_entropic_plan_of_singular_gaussians_in_one_line():
    """In one dimension c^2 + epsilon c / 2 = s_x^2 s_y^2; a direction without spread adds none."""
    zero, line = torch.zeros(2, dtype=torch.float64), torch.diag(double([4.0, 0.0]))
    plan = entropic_gaussian(zero, line, zero, line, 3.0)
    c = plan.cross_covariance[0, 0].item()
    assert c**2 + 1.5 * c == pytest.approx(16)
    assert plan.cross_covariance.flatten()[1:].tolist() == [0, 0, 0]
    assert plan.entropic_cost == pytest.approx(8 - 2 * c - 1.5 * math.log(1 - c**2 / 16))


def test_wrong_moments_are_named():
    mean, cov = torch.zeros(2), torch.eye(2)
    for function in (gaussian_map, lambda *moments: entropic_gaussian(*moments, 1.0)):
        with pytest.raises(ValueError, match=r"got mean_y \(3,\) and cov_y \(2, 2\)"):
            function(mean, cov, torch.zeros(3), cov)
        with pytest.raises(ValueError, match=r"got mean_x \(2,\) and cov_x \(3, 3\)"):
            function(mean, torch.eye(3), mean, cov)
        for wrong in (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), -cov):
            with pytest.raises(ValueError, match="cov_y must be symmetric and positive semi-def"):
                function(mean, cov, mean, wrong)
    with pytest.raises(ValueError, match="cov_x must be positive definite, or there may be no map"):
        gaussian_map(mean, torch.diag(torch.tensor([1.0, 0.0])), mean, cov)
    for epsilon in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be a positive number; got"):
            entropic_gaussian(mean, cov, mean, cov, epsilon)
