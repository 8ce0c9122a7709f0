"""Wasserstein distances between samples against closed forms and against POT."""

from itertools import permutations

import numpy as np
import ot
import pytest
import torch

import course_lib.evaluation
from course_lib.transport import (
    optimal_permutation,
    sliced_wasserstein2,
    wasserstein2,
    wasserstein_1d,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_w2_of_a_shift_is_its_length():
    x = normal(200, 3)
    shift = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    shuffled = x[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert wasserstein2(x, shuffled + shift) == pytest.approx(3.0, abs=1e-12)
    assert wasserstein2(x, shuffled) == 0.0


def test_w2_in_one_dimension_sorts():
    x, y = normal(300, 1), 2 * normal(300, 1, seed=1) + 1
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt().item()
    assert wasserstein2(x, y) == pytest.approx(expected, rel=1e-12)


def test_w2_agrees_with_pot():
    x, y = normal(60, 2), normal(60, 2, seed=1) @ torch.diag(torch.tensor([2.0, 0.5]).double())
    weights = np.full(60, 1 / 60)
    expected = ot.emd2(weights, weights, ot.dist(x.numpy(), y.numpy())) ** 0.5
    assert wasserstein2(x, y) == pytest.approx(expected, rel=1e-9)


def test_w2_between_gaussians():
    # W2^2 between N(0, 1) and N(3, 2^2) is 3^2 + (2 - 1)^2; the estimate's error is about 0.07;
    # an arbitrary pairing would give the root of 9 + 1 + 4.
    x, y = normal(1000, 1), 2 * normal(1000, 1, seed=1) + 3
    assert wasserstein2(x, y) == pytest.approx(10**0.5, abs=0.2)


def test_w2_takes_images_in_float32():
    x = normal(20, 1, 4, 4).float().requires_grad_()
    assert wasserstein2(x, x + 0.5) == pytest.approx(0.5 * 4, rel=1e-6)


@pytest.mark.parametrize("distance", [wasserstein2, sliced_wasserstein2])
def test_wasserstein_needs_equal_sizes(distance):
    with pytest.raises(ValueError, match="same number of samples; got 5 and 4"):
        distance(normal(5, 2), normal(4, 2))


@pytest.mark.parametrize("distance", [wasserstein2, sliced_wasserstein2])
def test_distances_refuse_unusable_samples(distance):
    x = normal(5, 2)
    with pytest.raises(ValueError, match="same dimension; got 2 and 3"):
        distance(x, normal(5, 3))
    with pytest.raises(ValueError, match="y must be finite"):
        distance(x, x / 0)
    with pytest.raises(ValueError, match=r"x must have shape \(N, \.\.\.\)"):
        distance(x[:, 0], x)
    with pytest.raises(ValueError, match="N >= "):
        distance(x[:0], x)


def test_sliced_w2_of_a_shift():
    # E <u, m>^2 = |m|^2 / D for u uniform on the sphere.
    x = normal(50, 4)
    shift = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    value = sliced_wasserstein2(x, x + shift, projections=20_000)
    assert value == pytest.approx(2.5, rel=0.02)


def test_sliced_w2_is_w2_in_one_dimension():
    x, y = normal(100, 1), 3 * normal(100, 1, seed=1)
    assert sliced_wasserstein2(x, y, projections=3) == pytest.approx(wasserstein2(x, y), rel=1e-12)


def test_sliced_w2_agrees_with_pot():
    x, y = normal(80, 3), normal(80, 3, seed=1) + 1
    directions = normal(3, 64, seed=2)
    expected = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=(directions / directions.norm(dim=0)).numpy()
    )
    generator = torch.Generator().manual_seed(2)
    value = sliced_wasserstein2(x, y, projections=64, generator=generator)
    assert value == pytest.approx(expected, rel=1e-10)


def test_sliced_w2_is_repeatable_and_leaves_the_global_generator():
    x, y = normal(30, 2), normal(30, 2, seed=1)
    state = torch.random.get_rng_state()
    assert sliced_wasserstein2(x, y) == sliced_wasserstein2(x, y)
    assert torch.equal(state, torch.random.get_rng_state())


def test_sliced_w2_needs_a_direction():
    with pytest.raises(ValueError, match="projections must be at least 1; got 0"):
        sliced_wasserstein2(normal(3, 2), normal(3, 2), projections=0)


@pytest.mark.parametrize("seed", range(3))
def test_permutation_is_the_best_of_all(seed):
    cost = normal(5, 5, seed=seed)
    best = min(
        permutations(range(5)), key=lambda p: sum(cost[i, j].item() for i, j in enumerate(p))
    )
    found = optimal_permutation(cost)
    assert found.dtype == torch.int64
    assert tuple(found.tolist()) == best


def test_permutation_errors():
    for shape in ((3, 2), (4,), (0, 0)):
        with pytest.raises(ValueError, match=r"cost must have shape \(N, N\), N >= 1; got"):
            optimal_permutation(torch.zeros(shape))
    with pytest.raises(ValueError, match="cost must be finite"):
        optimal_permutation(torch.full((2, 2), torch.nan))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_on_the_line_agrees_with_pot(p):
    x, y = normal(30), 2 * normal(17, seed=1) + 1
    masses_x, masses_y = normal(30, seed=2).abs(), normal(17, seed=3).abs()
    uniform = ot.wasserstein_1d(x.numpy(), y.numpy(), p=p) ** (1 / p)
    assert wasserstein_1d(x, y, p) == pytest.approx(uniform, rel=1e-10)
    a, b = (masses_x / masses_x.sum()).numpy(), (masses_y / masses_y.sum()).numpy()
    weighted = ot.emd2_1d(x.numpy(), y.numpy(), a, b, metric="minkowski", p=p) ** (1 / p)
    assert wasserstein_1d(x, y, p, masses_x, masses_y) == pytest.approx(weighted, rel=1e-10)


def test_on_the_line_equal_sizes_are_sorted():
    x, y = normal(200, 1), normal(200, 1, seed=1) + 2
    assert wasserstein_1d(x, y) == pytest.approx(wasserstein2(x, y), rel=1e-10)
    assert wasserstein_1d(x, x.flip(0)) == 0
    assert wasserstein_1d(x.float(), x.float() + 3, p=1) == pytest.approx(3, rel=1e-6)


def test_on_the_line_a_point_without_mass_is_not_there():
    x, y = torch.tensor([0.0, 1.0, 50.0]), torch.tensor([0.0, 3.0])
    # Half of the mass at 0 stays, the other half goes from 1 to 3.
    value = wasserstein_1d(x, y, weights_x=torch.tensor([2.0, 2.0, 0.0]))
    assert value == pytest.approx((0.5 * 4) ** 0.5)
    # A quarter of the mass goes from 1 to 0, half of it from 1 to 3.
    value = wasserstein_1d(x, y, p=1, weights_x=torch.tensor([0.25, 0.75, 0.0]))
    assert value == pytest.approx(0.25 + 0.5 * 2)


def test_on_the_line_errors():
    x = normal(4)
    with pytest.raises(ValueError, match=r"p must be at least 1; got 0\.5"):
        wasserstein_1d(x, x, p=0.5)
    with pytest.raises(ValueError, match=r"y must have shape \(N,\) or \(N, 1\); got dimension 2"):
        wasserstein_1d(x, normal(4, 2))
    with pytest.raises(ValueError, match="x must be finite"):
        wasserstein_1d(x / 0, x)
    for weights in (torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.zeros(4),
                    torch.full((4,), torch.nan)):  # fmt: skip
        with pytest.raises(ValueError, match=r"weights_y must have shape \(4,\), at least 0 each"):
            wasserstein_1d(x, x, weights_y=weights)


def test_the_measures_of_transport_are_found_in_evaluation_too():
    for name in ("gaussian_wasserstein2", "path_energy", "sliced_wasserstein2", "straightness",
                 "wasserstein2"):  # fmt: skip
        assert getattr(course_lib.evaluation, name) is getattr(course_lib.transport, name)
