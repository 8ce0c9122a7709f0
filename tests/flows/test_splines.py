"""Splines against the formulas of the paper, one number at a time."""

import bisect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import normal

from course_lib.flows.splines import LEAST, rational_quadratic_spline

BINS, BOUND = 5, 3.0


def parameters(*shape, bins=BINS, scale=1.0, dtype=torch.float64):
    return normal(*shape, 3 * bins - 1, seed=2, scale=scale, dtype=dtype)


def shares(numbers):
    exponentials = [math.exp(number) for number in numbers]
    return [LEAST / len(numbers) + (1 - LEAST) * e / sum(exponentials) for e in exponentials]


def by_the_paper(x, numbers):
    """Value and derivative at x, in plain Python (Durkan et al. 2019, equations 4 and 5)."""
    bins = (len(numbers) + 1) // 3
    places, values = [-BOUND], [-BOUND]
    for knots, part in ((places, numbers[:bins]), (values, numbers[bins : 2 * bins])):
        for share in shares(part):
            knots.append(knots[-1] + 2 * BOUND * share)
    inner = [LEAST + (1 - LEAST) * math.log2(1 + 2**n) for n in numbers[2 * bins :]]
    slopes = [1.0, *inner, 1.0]
    if not -BOUND < x < BOUND:
        return x, 1.0
    k = bisect.bisect(places, x) - 1
    width, height = places[k + 1] - places[k], values[k + 1] - values[k]
    s, xi = height / width, (x - places[k]) / width
    bottom = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
    value = values[k] + height * (s * xi**2 + slopes[k] * xi * (1 - xi)) / bottom
    top = slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2
    return value, s**2 * top / bottom**2


def test_value_and_derivative_are_those_of_the_paper():
    x, numbers = torch.linspace(-4, 4, 41, dtype=torch.float64), parameters(41)
    y, log_slope = rational_quadratic_spline(x, numbers, BOUND)
    oracle = [by_the_paper(*row) for row in zip(x.tolist(), numbers.tolist(), strict=True)]
    value, slope = torch.tensor(oracle, dtype=torch.float64).T
    torch.testing.assert_close(y, value)
    torch.testing.assert_close(log_slope, slope.log(), atol=1e-10, rtol=0)
    assert (y - x).abs().max() > 0.1


@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("inverse", [False, True])
def test_zero_is_the_identity(bins, inverse):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    y, log_slope = rational_quadratic_spline(
        x, torch.zeros(101, 3 * bins - 1).double(), BOUND, inverse=inverse
    )
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_inverse_and_log_derivative(scale):
    x = torch.linspace(-4, 4, 801, dtype=torch.float64).requires_grad_()
    numbers = parameters(1, scale=scale).expand(801, -1)
    y, log_slope = rational_quadratic_spline(x, numbers, BOUND)
    back, log_slope_back = rational_quadratic_spline(y, numbers, BOUND, inverse=True)
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=0)
    torch.testing.assert_close(log_slope_back, -log_slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_slope, slope.log(), atol=1e-9, rtol=0)
    assert (y.diff() > 0).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_slope_is_continuous_at_the_knots_and_the_ends(inverse):
    numbers, jumps = parameters(1), []
    for points in (10_001, 100_001):
        x = torch.linspace(-3.5, 3.5, points, dtype=torch.float64)
        _, log_slope = rational_quadratic_spline(
            x, numbers.expand(points, -1), BOUND, inverse=inverse
        )
        jumps.append(log_slope.diff().abs().max())
    assert jumps[1] < 0.11 * jumps[0]


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_to_second_order(inverse):
    def spline(x, numbers):
        return rational_quadratic_spline(x, numbers, BOUND, inverse=inverse)

    # Points on both sides of the ends, and none at a knot, where the third derivative jumps.
    x = torch.tensor([-3.7, -1.2, 0.3, 2.4, 3.5], dtype=torch.float64, requires_grad=True)
    numbers = parameters(5).requires_grad_()
    assert torch.autograd.gradcheck(spline, (x, numbers))
    assert torch.autograd.gradgradcheck(spline, (x, numbers))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    inverse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bins=st.integers(1, 16),
)
def test_extremes_stay_finite(values, scale, inverse, dtype, bins):
    x = torch.tensor([*values, -BOUND, BOUND], dtype=dtype, requires_grad=True)
    numbers = parameters(len(x), bins=bins, scale=scale, dtype=dtype).requires_grad_()
    y, log_slope = rational_quadratic_spline(x, numbers, BOUND, inverse=inverse)
    grads = torch.autograd.grad((y + log_slope).sum(), (x, numbers))
    outside = x.detach().abs() >= BOUND
    torch.testing.assert_close(y[outside], x[outside], atol=1e-5, rtol=1e-6)
    for value in (y, log_slope, *grads):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("shape", "bound", "message"),
    [
        ((4, 14), 3.0, r"parameters must have shape \(5, 3 K - 1\); got \(4, 14\)"),
        ((5, 13), 3.0, r"parameters must have shape \(5, 3 K - 1\); got \(5, 13\)"),
        ((5, 14), 0.0, "bound must be above 0; got 0.0"),
    ],
)
def test_errors(shape, bound, message):
    with pytest.raises(ValueError, match=message):
        rational_quadratic_spline(torch.zeros(5), torch.zeros(shape), bound)
