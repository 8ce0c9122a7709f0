"""What the exercises on reflow and optimal transport claim in words or numbers, measured."""

import itertools

import pytest
import torch

from course_lib.check import reflow_ot
from course_lib.check.questions import normal


def covariances(seed, d=3):
    draw = normal(seed)
    return reflow_ot._covariance(draw, d), reflow_ot._covariance(draw, d)


@pytest.mark.parametrize("cost", [torch.abs, torch.square, torch.cosh])
def test_on_the_line_the_same_order_is_best_for_every_convex_cost(cost):
    """Exercise wasserstein_line."""
    draw = normal(0)
    x, y = draw(6).sort().values, draw(6).sort().values
    costs = [cost(x - y[list(p)]).sum().item() for p in itertools.permutations(range(6))]
    assert costs[0] == pytest.approx(min(costs), rel=1e-12)


def test_with_a_plus_the_best_plan_is_sharp_for_every_epsilon():
    """Exercise entropic_objective: plans ((s, 1/2 - s), (1/2 - s, s))."""
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    wrong = reflow_ot._entropic(total=lambda c, h, e: c + e * h)
    right = reflow_ot._entropic()
    shares = torch.linspace(0, 0.5, 101).double()
    plans = [torch.tensor([[s, 0.5 - s], [0.5 - s, s]]).double() for s in shares]
    for epsilon in (0.1, 10.0):
        best = torch.stack([wrong(cost, p, epsilon) for p in plans]).argmin()
        assert shares[best] in (0, 0.5)
    best = torch.stack([right(cost, p, 10.0) for p in plans]).argmin()
    assert shares[best] == pytest.approx(0.26, abs=0.01)


def test_entropy_and_divergence_differ_by_a_constant_of_the_marginals():
    """Exercise entropic_objective."""
    draw = normal(0)
    a, b, cost = draw(4).softmax(0), draw(3).softmax(0), draw(4, 3).square()
    plans = [reflow_ot._sinkhorn()(a, b, cost, e, 500) for e in (0.3, 3.0)]
    for plan in plans:
        gap = -reflow_ot._relative_entropy(plan) + torch.special.entr(plan).sum()
        both = torch.special.entr(a).sum() + torch.special.entr(b).sum()
        assert gap.item() == pytest.approx(both.item(), abs=1e-9)


def test_whitening_and_colouring_hits_the_target_but_costs_more():
    """Exercise gaussian_map."""
    cx, cy = covariances(0)
    turned = reflow_ot._root(cy) @ reflow_ot._root(cx, -0.5)
    best = reflow_ot._mapped(lambda x: reflow_ot._root(x, -0.5), reflow_ot._middle)(cx, cy)
    for matrix in (turned, best):
        torch.testing.assert_close(matrix @ cx @ matrix.mT, cy)
    assert (turned @ cx).trace() < (best @ cx).trace() - 0.005  # so its cost is larger


def test_a_blurred_plan_maps_to_less_spread():
    """Exercise barycentric_map."""
    draw = normal(0)
    x, y = draw(8, 2), draw(8, 2)
    a = torch.full((8,), 1 / 8).double()
    plans = [reflow_ot._sinkhorn()(a, a, torch.cdist(x, y) ** 2, e, 2000) for e in (0.05, 1.0, 50)]
    spreads = [(8 * p @ y).var(0, correction=0).sum() for p in plans]
    assert y.var(0, correction=0).sum() >= spreads[0] > spreads[1] > spreads[2]


def test_velocity_between_gaussians_is_a_gradient_only_if_they_commute():
    """Exercise linear_velocity."""
    c0, c1 = covariances(1)
    right = reflow_ot._regressed()
    for t in (0.0, 0.2, 0.7, 1.0):
        time = torch.tensor(t).double()
        m = right(c0, c1, time)
        assert torch.allclose(m, m.mT) == (t in (0.0, 1.0))
        commuting = right(c0, c0 @ c0, time)
        torch.testing.assert_close(commuting, commuting.mT)


@pytest.mark.parametrize("seed", range(3))
def test_reflow_stops_after_one_round_above_the_optimum(seed):
    """Exercise reflow_experiment: 7.25, 2.5214 and 2.0802; with standard noise the optimum."""
    plane, standard, _ = reflow_ot._reflow_cases(seed)
    costs, best = plane.answer[1].values()
    assert costs.tolist() == pytest.approx([7.25, *[2.5214] * 4], abs=1e-4)
    assert best.item() == pytest.approx(2.0802, abs=1e-4)
    costs, best = standard.answer[1].values()
    assert costs[1:].tolist() == pytest.approx([best.item()] * 2, rel=1e-6)


def test_a_draw_of_its_own_shows_in_the_correlation_only():
    """Exercise make_pairs: data N(2, 0.5^2)."""

    def velocity(x, t):
        t = t[:, None]
        slope = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        return slope * (x - (1 - t) * 2) - 2

    eps, other = (
        torch.randn(10_000, 1, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    for start, correlation in ((eps, 1.0), (other, 0.0)):
        x0, _ = reflow_ot._made(lambda v, e, s=start: s)(velocity, eps, 1000)
        assert x0.mean().item() == pytest.approx(2, abs=0.02)
        assert x0.std().item() == pytest.approx(0.5, abs=0.01)
        both = torch.cat([x0, eps], 1).mT
        assert torch.corrcoef(both)[0, 1].item() == pytest.approx(correlation, abs=0.03)


def test_without_pairs_one_step_leads_to_the_mean():
    """Exercise one_step_loss: with independent noise the best constant-in-noise answer wins."""
    draw = normal(0)
    x0, eps = 3 + draw(4000, 1), draw(4000, 1)
    ones = torch.ones(4000, 1).double()
    fit = torch.linalg.lstsq(torch.cat([eps, ones], 1), eps - x0).solution.flatten()
    assert fit.tolist() == pytest.approx([1, -3], abs=0.1)  # so eps - v is 3, whatever eps is
