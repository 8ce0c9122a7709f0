"""Six bijections: exact inverses, and derivatives of any order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import normal

from course_lib.flows.activations import ACTIVATIONS, MIX, Activation, find_activation

NAMES = list(ACTIVATIONS)
RAW = {
    "softplus": lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0),
    "leaky_relu": lambda x: torch.maximum(x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x.clamp(max=0))),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "trivial": lambda x: x,
}

each = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=NAMES)


def spread(dtype=torch.float64):
    """Points from 1e-6 to 1e6 on both sides of 0, many of them where the activations bend."""
    far = torch.logspace(-6, 6, 601, dtype=torch.float64)
    return torch.cat([-far, torch.linspace(-30, 30, 4001, dtype=torch.float64), far]).to(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_activation_mixed_with_the_identity(name):
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    want = MIX * x + (1 - MIX) * RAW[name](x)
    torch.testing.assert_close(ACTIVATIONS[name](x), want, atol=1e-12, rtol=1e-12)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverse_is_exact_to_rounding(activation, dtype):
    y = spread(dtype)
    x = activation.inverse(y)
    error = (activation(x.double()) - y.double()).abs() / y.double().abs().clamp(min=1)
    assert x.dtype == dtype
    assert error.max() < 8 * torch.finfo(dtype).eps


@each
def test_bracket_holds_the_inverse(activation):
    y = spread()
    lower, upper = activation.bracket(y)
    slack = 1e-12 * y.abs().clamp(min=1)
    assert (activation(lower) <= y + slack).all()
    assert (activation(upper) >= y - slack).all()
    assert (upper - lower).max() <= (1 - MIX) / MIX * 2.2 + 1e-9


@each
def test_slope_is_the_derivative_and_keeps_its_bounds(activation):
    x = spread().requires_grad_()
    (derivative,) = torch.autograd.grad(activation(x).sum(), x)
    torch.testing.assert_close(activation.slope(x), derivative, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(activation.log_derivative(x), derivative.log())
    assert derivative.min() > 0.17
    assert derivative.max() < 1.08


def test_swish_as_it_stands_falls_by_what_the_share_of_the_identity_makes_up_for():
    slopes = ACTIVATIONS["swish"].derivative(torch.linspace(-10, 10, 100_001, dtype=torch.float64))
    assert slopes.min().item() == pytest.approx(-0.0998, abs=1e-4)
    assert slopes.max().item() == pytest.approx(1.0998, abs=1e-4)
    assert MIX > 0.0998 / 1.0998


@each
def test_inverse_has_the_right_gradients(activation):
    y = normal(3, 4, scale=3.0).requires_grad_()
    assert torch.autograd.gradcheck(activation.inverse, y, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(activation.inverse, y)


def test_third_derivative_of_the_inverse():
    activation, x = ACTIVATIONS["tanh"], normal(6)
    y = activation(x).requires_grad_()
    derivative = activation.inverse(y)
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), y, create_graph=True)
    first, tanh = activation.slope(x), x.tanh()
    second = -2 * (1 - MIX) * tanh * (1 - tanh**2)
    third = -2 * (1 - MIX) * (1 - tanh**2) * (1 - 3 * tanh**2)
    torch.testing.assert_close(derivative, (3 * second**2 - first * third) / first**5)


@each
def test_inverse_under_vmap_and_jacrev(activation):
    y = normal(3, 4)
    jacobians = torch.vmap(torch.func.jacrev(activation.inverse))(y)
    want = torch.diag_embed(1 / activation.slope(activation.inverse(y)))
    torch.testing.assert_close(jacobians, want)


def test_newton_is_safe_where_it_would_leave_or_circle():
    """A step fifty times as steep as tanh, where Newton's method alone runs off."""
    steep = Activation(
        "steep",
        lambda x: torch.tanh(50 * x),
        lambda x: 50 * (1 - torch.tanh(50 * x).square()),
        (0, 0),
        (-1.1, 1.1),
    )
    y = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    torch.testing.assert_close(steep(steep.inverse(y)), y, atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_extremes_stay_finite(name, values, dtype):
    activation = ACTIVATIONS[name]
    y = torch.tensor(values, dtype=dtype, requires_grad=True)
    x = activation.inverse(y)
    out = (activation(x) + activation.log_derivative(x)).sum() + x.square().sum() / 1e4
    (first,) = torch.autograd.grad(out, y, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), y)
    for value in (x, out, first, second):
        assert torch.isfinite(value).all()


def test_shape_is_kept():
    for shape in ((), (0,), (2, 3, 4)):
        assert ACTIVATIONS["elu"].inverse(torch.zeros(shape)).shape == shape


def test_names_are_looked_up():
    assert find_activation("tanh") is ACTIVATIONS["tanh"]
    message = (
        "activation must be one of softplus, leaky_relu, elu, tanh, swish, trivial; got 'relu'"
    )
    with pytest.raises(ValueError, match=message):
        find_activation("relu")
