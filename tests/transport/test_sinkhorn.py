"""Entropic transport against POT, brute force, Newton's own claims and finite differences."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from course_lib.transport import PointCloud, sinkhorn, sinkhorn_divergence
from course_lib.transport import costs as costs_module

ot = pytest.importorskip("ot")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, d=2, seed=0):
    return torch.rand(n, d, generator=generator(seed), dtype=torch.float64)


def weights(n, seed=0):
    w = torch.rand(n, generator=generator(seed), dtype=torch.float64) + 0.1
    return w / w.sum()


def distances(x, y):
    return (x[:, None] - y[None]).square().sum(-1)


def problem(n=40, m=30, seed=0):
    x, y = points(n, seed=seed), points(m, seed=seed + 1)
    return weights(n, seed + 2), weights(m, seed + 3), x, y, distances(x, y)


def divergence_to_product(plan, a, b):
    """KL(P | a x b), with 0 log 0 = 0."""
    product = a[:, None] * b
    return torch.special.xlogy(plan, plan / product).sum()


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_plan_is_that_of_pot(epsilon):
    a, b, _, _, cost = problem()
    plan = sinkhorn(a, b, cost, epsilon, tol=1e-11)
    options = {"method": "sinkhorn_log", "numItermax": 100_000, "stopThr": 1e-13}
    theirs = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), epsilon, **options)
    np.testing.assert_allclose(plan.matrix.numpy(), theirs, atol=1e-11)
    assert float(plan.transport_cost) == pytest.approx((theirs * cost.numpy()).sum(), abs=1e-9)
    entropic = plan.transport_cost + epsilon * divergence_to_product(plan.matrix, a, b)
    assert float(plan.entropic_cost) == pytest.approx(float(entropic), abs=1e-9)


def test_small_epsilon_has_right_marginals_and_no_nan():
    a, b, _, _, cost = problem(60, 60)
    plan = sinkhorn(a, b, cost / cost.max(), 1e-3)
    matrix = plan.matrix
    assert bool(matrix.isfinite().all())
    assert float((matrix.sum(1) - a).abs().sum() + (matrix.sum(0) - b).abs().sum()) < 1e-6
    exact = ot.emd2(a.numpy(), b.numpy(), (cost / cost.max()).numpy())
    assert 0 < float(plan.transport_cost) - exact < 5e-3


def test_tiny_epsilon_finds_the_best_permutation():
    cost = torch.rand(6, 6, generator=generator(), dtype=torch.float64)
    plan = sinkhorn(None, None, cost, 1e-4)
    best = min(
        itertools.permutations(range(6)), key=lambda p: sum(cost[i, j] for i, j in enumerate(p))
    )
    assert plan.matrix.argmax(1).tolist() == list(best)
    assert plan.matrix.max(1).values.tolist() == pytest.approx([1 / 6] * 6)


def test_large_epsilon_gives_the_product_of_the_marginals():
    a, b, _, _, cost = problem()
    torch.testing.assert_close(
        sinkhorn(a, b, cost, 1e6).matrix, a[:, None] * b, rtol=1e-5, atol=0.0
    )


def test_potentials_describe_the_plan_and_bound_the_cost():
    a, b, _, _, cost = problem()
    plan = sinkhorn(a, b, cost, 0.05, tol=1e-10)
    made = a[:, None] * b * torch.exp((plan.f[:, None] + plan.g - cost) / 0.05)
    torch.testing.assert_close(made, plan.matrix)
    assert float((b * plan.g).sum()) == pytest.approx(0, abs=1e-12)
    dual = float((a * plan.f).sum() + (b * plan.g).sum())
    assert dual == pytest.approx(float(plan.entropic_cost), abs=1e-9)
    early = sinkhorn_quietly(a, b, cost, 0.05, max_iters=3)
    assert float(early.entropic_cost) < float(plan.entropic_cost)


def sinkhorn_quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sinkhorn(*args, **options)


def test_points_without_mass_get_none():
    a, b, _, _, cost = problem()
    a[:5], b[3] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    plan = sinkhorn(a, b, cost, 0.01)
    assert float(plan.matrix[:5].sum() + plan.matrix[:, 3].sum()) == 0
    assert bool(plan.f.isfinite().all() and plan.g.isfinite().all())
    without = sinkhorn(a[5:], b, cost[5:], 0.01)
    torch.testing.assert_close(plan.matrix[5:], without.matrix, rtol=1e-4, atol=1e-8)


def test_batch_is_each_problem_for_itself():
    cost = torch.rand(3, 12, 9, generator=generator(), dtype=torch.float64) * torch.tensor(
        [[[1.0]], [[5.0]], [[0.2]]]
    )
    b = torch.stack([weights(9, s) for s in range(3)])
    together = sinkhorn(None, b, cost, 0.02, tol=1e-10)
    assert together.matrix.shape == (3, 12, 9)
    assert together.transport_cost.shape == together.error.shape == (3,)
    for k in range(3):
        alone = sinkhorn(None, b[k], cost[k], 0.02, tol=1e-10)
        torch.testing.assert_close(together.matrix[k], alone.matrix, rtol=1e-6, atol=1e-12)


def test_single_precision_in_single_precision_out():
    a, b, _, _, cost = problem()
    plan = sinkhorn(a.float(), b.float(), cost.float(), 1e-3)
    assert plan.matrix.dtype == plan.f.dtype == plan.transport_cost.dtype == torch.float32
    assert float((plan.matrix.sum(0) - b).abs().sum()) < 2e-6


# --- point clouds ---------------------------------------------------------------------------------


def test_point_cloud_is_its_matrix_whatever_the_blocks(monkeypatch):
    a, b, x, y, cost = problem()
    stored = sinkhorn(a, b, cost, 0.01, tol=1e-10)
    for block in (2**22, 7 * 30, 1):
        monkeypatch.setattr(costs_module, "BLOCK", block)
        cloud = sinkhorn(a, b, PointCloud(x + 100, y + 100), 0.01, tol=1e-10)
        torch.testing.assert_close(cloud.matrix, stored.matrix, rtol=1e-6, atol=1e-12)
        assert float(cloud.transport_cost) == pytest.approx(float(stored.transport_cost), abs=1e-9)
        torch.testing.assert_close(cloud.barycentric_map(y), stored.barycentric_map(y))


def test_point_cloud_never_stores_the_matrix(monkeypatch):
    monkeypatch.setattr(costs_module, "BLOCK", 50 * 300)
    seen = []
    original = costs_module._CloudKernel._block
    monkeypatch.setattr(
        costs_module._CloudKernel,
        "_block",
        lambda self, rows: seen.append(original(self, rows)) or seen[-1],
    )
    sinkhorn(None, None, PointCloud(points(400), points(300, seed=1)), 0.1)
    assert {tuple(block.shape) for block in seen} == {(1, 50, 300)}


def test_batch_of_point_clouds():
    x, y = (torch.rand(2, 8, 3, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    plan = sinkhorn(None, None, PointCloud(x, y), 0.05, tol=1e-10)
    for k in range(2):
        alone = sinkhorn(None, None, distances(x[k], y[k]), 0.05, tol=1e-10)
        torch.testing.assert_close(plan.matrix[k], alone.matrix, rtol=1e-6, atol=1e-12)
    assert plan.barycentric_map(y).shape == (2, 8, 3)


# --- what is made of a plan -----------------------------------------------------------------------


def test_barycentric_map_is_the_conditional_mean():
    a, b, _, y, cost = problem()
    plan = sinkhorn(a, b, cost, 0.02, tol=1e-10)
    torch.testing.assert_close(plan.barycentric_map(y), plan.matrix @ y / a[:, None])


def test_targets_are_drawn_from_the_rows():
    a, b, _, _, cost = problem(5, 4)
    plan = sinkhorn(a, b, cost, 0.2)
    draws = torch.stack([plan.sample_targets(generator(s)) for s in range(4000)])
    frequency = torch.stack([(draws == j).double().mean(0) for j in range(4)], dim=1)
    torch.testing.assert_close(frequency, plan.matrix / a[:, None], atol=0.03, rtol=0.0)


def test_divergence_is_zero_for_equal_clouds_and_tends_to_the_squared_distance():
    x, y = points(30), points(40, seed=5) + 0.3
    assert float(sinkhorn_divergence(x, x, 0.1)) == pytest.approx(0, abs=1e-12)
    uniform = (np.full(30, 1 / 30), np.full(40, 1 / 40))
    exact = ot.emd2(*uniform, distances(x, y).numpy())
    assert float(sinkhorn_divergence(x, y, 1e-3)) == pytest.approx(exact, rel=0.01)


def test_divergence_is_made_of_costs_that_pot_finds_too():
    x, y = points(30), points(40, seed=5) + 0.3

    def cost(u, v):
        a, b = np.full(len(u), 1 / len(u)), np.full(len(v), 1 / len(v))
        options = {"method": "sinkhorn_log", "numItermax": 10_000, "stopThr": 1e-12}
        plan = torch.from_numpy(ot.sinkhorn(a, b, distances(u, v).numpy(), 0.1, **options))
        entropy = divergence_to_product(plan, torch.from_numpy(a), torch.from_numpy(b))
        return (plan * distances(u, v)).sum() + 0.1 * entropy

    theirs = cost(x, y) - (cost(x, x) + cost(y, y)) / 2
    assert float(sinkhorn_divergence(x, y, 0.1)) == pytest.approx(float(theirs), abs=1e-6)


def test_divergence_of_shifted_clouds_is_the_squared_shift():
    x = points(25)
    shift = torch.tensor([0.3, -0.4], dtype=torch.float64)
    for epsilon in (0.01, 1.0):
        assert float(sinkhorn_divergence(x, x + shift, epsilon)) == pytest.approx(0.25, abs=1e-6)


# --- speed in iterations, not in seconds ----------------------------------------------------------


def plain_iterations(cost, epsilon, tol=1e-6):
    """Sinkhorn's iteration in logarithms, counted until the error of the columns is small."""
    n, m = cost.shape
    g = torch.zeros(m, dtype=torch.float64)
    for k in range(1, 100_000):
        f = epsilon * math.log(m) - epsilon * torch.logsumexp((g - cost) / epsilon, 1)
        new = epsilon * math.log(n) - epsilon * torch.logsumexp((f[:, None] - cost) / epsilon, 0)
        if float(torch.expm1((g - new) / epsilon).abs().mean()) < tol:
            return k
        g = new
    raise AssertionError("plain iteration did not converge")


def test_newton_needs_the_square_root_of_the_iterations():
    cost = distances(points(200), points(200, seed=1) ** 1.5)
    plain, plan = plain_iterations(cost, 2e-3), sinkhorn(None, None, cost, 2e-3)
    assert plain > 400
    assert plan.converged
    assert plan.iterations < plain / 4


# --- gradients ------------------------------------------------------------------------------------


def readings(plan, y):
    """Numbers that look at every part of a plan."""
    n, m = plan.matrix.shape
    marks = torch.arange(n * m, dtype=torch.float64).reshape(n, m).cos()
    return torch.stack(
        [
            plan.transport_cost,
            plan.entropic_cost,
            (plan.matrix * marks).sum(),
            plan.barycentric_map(y).square().sum(),
            (plan.f * marks[:, 0]).sum(),
            (plan.g * marks[0]).sum(),
        ]
    )


@pytest.mark.parametrize("cloud", [False, True])
def test_gradients_are_those_of_finite_differences(cloud, monkeypatch):
    monkeypatch.setattr(costs_module, "BLOCK", 10)

    def function(a, b, x, y):
        cost = PointCloud(x, y) if cloud else distances(x, y)
        return readings(sinkhorn(a / a.sum(), b / b.sum(), cost, 0.05, tol=1e-12), y)

    inputs = [weights(6), weights(5, 1), points(6), points(5, seed=1)]
    assert gradcheck(function, [i.requires_grad_() for i in inputs], atol=1e-6)


def test_gradients_of_a_batch():
    def function(cost):
        plan = sinkhorn(None, None, cost, 0.1, tol=1e-12)
        return plan.transport_cost, plan.matrix.square().sum((1, 2))

    cost = torch.rand(2, 4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, cost, atol=1e-6)


def test_gradient_of_the_divergence_moves_points_home():
    x, y = points(20), points(20, seed=1) + 1
    before = float(sinkhorn_divergence(x, y, 0.1))
    for _ in range(3):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, 0.1), x)
        x = x - 10 * gradient  # 20 points of weight 1/20: half of their way is 10 gradients
    assert float(sinkhorn_divergence(x.detach(), y, 0.1)) < before / 500


# --- errors ---------------------------------------------------------------------------------------

COST = torch.rand(4, 3, dtype=torch.float64, generator=generator())
THIRDS = torch.full((3,), 1 / 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "cost", "epsilon", "options", "message"),
    [
        (None, None, COST, 0.0, {}, "epsilon must be a positive number; got 0"),
        (None, None, COST, -1.0, {}, "epsilon must be a positive"),
        (None, None, COST, math.nan, {}, "epsilon must be a positive"),
        (None, None, COST, 0.1, {"tol": 0}, "tol must be a positive"),
        (None, None, COST, 0.1, {"max_iters": 0}, "max_iters must be at least 1"),
        (None, None, COST[:0], 0.1, {}, r"none of them 0; got \(0, 3\)"),
        (None, None, COST[0], 0.1, {}, r"cost must have shape \(n, m\)"),
        (None, None, COST.log() * math.inf, 0.1, {}, "cost must be finite"),
        (None, None, COST * math.nan, 0.1, {}, "cost must be finite; it contains NaN"),
        (THIRDS, None, COST, 0.1, {}, r"a must have shape \(4,\) or \(1, 4\)"),
        (None, 2 * THIRDS, COST, 0.1, {}, r"b must sum to 1; got 2 \(divide by b.sum\(\)\)"),
        (None, THIRDS * torch.tensor([4, -2, 1]), COST, 0.1, {}, "b must not be negative"),
        (None, THIRDS * math.nan, COST, 0.1, {}, "b must not be negative or NaN"),
    ],
)
def test_bad_arguments_are_named(a, b, cost, epsilon, options, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(a, b, cost, epsilon, **options)


def test_costs_must_be_floating_point():
    with pytest.raises(TypeError, match="cost must be floating point"):
        sinkhorn(None, None, torch.ones(2, 2, dtype=torch.int64), 0.1)
    with pytest.raises(TypeError, match="x must be floating point"):
        PointCloud(torch.ones(2, 2, dtype=torch.int64), points(2))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (points(3)[:0], points(3), r"x must have shape \(n, d\)"),
        (points(3), points(3, d=3), "x and y must agree"),
        (points(3), points(3)[None], "x and y must agree"),
        (points(3), points(3) * math.nan, "y must be finite"),
    ],
)
def test_bad_point_clouds_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        PointCloud(x, y)


def test_barycentric_map_needs_a_point_for_each_column():
    with pytest.raises(ValueError, match=r"one point a column, shape \(3, d\)"):
        sinkhorn(None, None, COST, 0.1).barycentric_map(points(4))


def test_a_warning_says_what_to_change():
    _, _, _, _, cost = problem()
    with pytest.warns(UserWarning, match=r"max_iters=4 .*Raise max_iters, or tol, or epsilon"):
        plan = sinkhorn(None, None, cost, 1e-3, max_iters=4)
    assert not plan.converged
    assert plan.iterations <= 10
    assert float(plan.error) > 1e-6
    assert bool(plan.matrix.isfinite().all())
