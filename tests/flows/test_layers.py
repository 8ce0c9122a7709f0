"""The plain layer: its Jacobian, and the Gaussian that it is without an activation."""

import pytest
import torch
from jacobians import assert_change_of_variables, assert_gradient_reaches_all, normal, perturbed

from course_lib.flows.activations import ACTIVATIONS
from course_lib.flows.layers import FlowLayer, conditioner
from course_lib.flows.linear import LINEAR_MAPS

each = pytest.mark.parametrize("activation", ACTIVATIONS)
either = pytest.mark.parametrize("linear", LINEAR_MAPS)


@each
@either
@pytest.mark.parametrize("cond_dim", [0, 4])
def test_change_of_variables(activation, linear, cond_dim):
    flow = perturbed(lambda: FlowLayer(3, activation, linear=linear, cond_dim=cond_dim))
    assert_change_of_variables(flow)


@each
@either
def test_standard_normal_data_start_as_noise_of_unit_variance(activation, linear):
    flow = perturbed(lambda: FlowLayer(3, activation, linear=linear), amount=0)
    z, _ = flow.inverse(normal(20_000, 3))
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), torch.ones(3).double(), atol=0.05, rtol=0)


@either
def test_one_trivial_layer_is_any_gaussian(linear):
    flow = perturbed(lambda: FlowLayer(3, "trivial", linear=linear, cond_dim=2), amount=0.3)
    x, cond = normal(6, 3), normal(6, 2, seed=3)
    for i in range(6):
        log_scale, shift = flow._film(cond[i : i + 1])
        W = flow.linear(torch.eye(3).double()).T * log_scale.exp()
        oracle = torch.distributions.MultivariateNormal(shift[0], W @ W.T).log_prob(x[i])
        torch.testing.assert_close(flow.log_prob(x[i : i + 1], cond[i : i + 1])[0], oracle)
        assert log_scale.abs().max() > 0.05


def test_a_condition_has_no_effect_at_first_and_some_later():
    start = perturbed(lambda: FlowLayer(3, "elu", cond_dim=2), amount=0)
    later = perturbed(lambda: FlowLayer(3, "elu", cond_dim=2))
    x, one, other = normal(4, 3), normal(4, 2, seed=3), normal(4, 2, seed=4)
    assert torch.equal(start.log_prob(x, one), start.log_prob(x, other))
    assert (later.log_prob(x, one) - later.log_prob(x, other)).abs().min() > 1e-4


def test_the_scale_of_the_condition_is_bounded():
    flow = perturbed(lambda: FlowLayer(3, "trivial", cond_dim=2), amount=1.0)
    log_scale, _ = flow._film(1e6 * normal(50, 2))
    assert log_scale.abs().max() <= FlowLayer.bound
    assert log_scale.abs().max() > 0.9 * FlowLayer.bound


@either
@pytest.mark.parametrize("cond_dim", [0, 4])
@torch.no_grad()
def test_autocast_leaves_the_change_of_variables_exact(linear, cond_dim):
    flow = perturbed(
        lambda: FlowLayer(3, "tanh", linear=linear, cond_dim=cond_dim), dtype=torch.float32
    )
    x, cond = normal(5, 3).float(), normal(5, cond_dim).float() if cond_dim else None
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow.inverse(x, cond)
        back, log_det_back = flow(z, cond)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-5, rtol=1e-5)


@each
@either
@pytest.mark.parametrize("cond_dim", [0, 4])
def test_gradient_reaches_every_parameter(activation, linear, cond_dim):
    assert_gradient_reaches_all(
        perturbed(lambda: FlowLayer(3, activation, linear=linear, cond_dim=cond_dim))
    )


def test_conditioner_starts_at_zero():
    assert torch.equal(conditioner(3, 8, 5)(normal(4, 3).float()), torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"activation": "relu"}, "activation must be one of softplus"),
        ({"linear": "qr"}, "linear must be one of plu, orthogonal"),
        ({"cond_dim": -1}, "cond_dim must be at least 0; got -1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        FlowLayer(**{"dim": 2, "activation": "elu", **options})
