"""Whole flows: densities that integrate to one, and scores that are their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import (
    assert_change_of_variables,
    assert_gradient_reaches_all,
    inputs,
    normal,
    perturbed,
)

from course_lib.flows.activations import ACTIVATIONS
from course_lib.flows.flow import standard_normal_log_prob
from course_lib.flows.normalizing_flow import NeuralSplineFlow, NormalizingFlow, RealNVP

FLOWS = {
    **{
        name: lambda dim, cond_dim=0, name=name: NormalizingFlow(dim, 2, name, cond_dim)
        for name in ACTIVATIONS
    },
    "orthogonal": lambda dim, cond_dim=0: NormalizingFlow(
        dim, 2, "tanh", cond_dim, linear="orthogonal"
    ),
    "realnvp": lambda dim, cond_dim=0: RealNVP(dim, 4, 8, cond_dim),
    "spline": lambda dim, cond_dim=0: NeuralSplineFlow(dim, 4, 8, 4, 3.0, cond_dim),
}
each = pytest.mark.parametrize("name", FLOWS)
conditioned = pytest.mark.parametrize("cond_dim", [0, 3])


@each
@conditioned
@pytest.mark.parametrize("dim", [2, 5])
def test_change_of_variables(name, dim, cond_dim):
    assert_change_of_variables(perturbed(lambda: FLOWS[name](dim, cond_dim)))


def grid(half=25.0, points=601):
    """A square grid around 0, and the area of one of its cells."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * half / (points - 1)) ** 2


@each
@torch.no_grad()
def test_density_integrates_to_one(name):
    if name == "leaky_relu":  # it jumps at its kinks: fewer of them, and a finer grid
        flow, (x, area) = perturbed(lambda: NormalizingFlow(2, 1, name)), grid(14.0, 1001)
    else:
        flow, (x, area) = perturbed(lambda: FLOWS[name](2)), grid()
    assert flow.log_prob(x).exp().sum().item() * area == pytest.approx(1, abs=1e-3)


@each
@torch.no_grad()
def test_density_the_wrong_way_does_not_integrate_to_one(name):
    """Data pushed forward, as if they were noise: the test above would have caught it."""
    flow = perturbed(lambda: FLOWS[name](2))
    x, area = grid(points=301)
    pushed, log_det = flow(x)
    for wrong in (standard_normal_log_prob(x), standard_normal_log_prob(pushed)):
        assert abs((wrong - log_det).exp().sum().item() * area - 1) > 0.1
    # With the other sign it is a density, but that of the inverse flow.
    other = standard_normal_log_prob(pushed) + log_det
    middle = x.norm(dim=1) < 2
    assert (other - flow.log_prob(x))[middle].abs().max() > 0.1


@each
@conditioned
def test_both_ways_tell_the_same_density(name, cond_dim):
    flow = perturbed(lambda: FLOWS[name](3, cond_dim))
    z, cond = inputs(flow)
    x, log_prob = flow.forward_with_base_samples(z, cond)
    torch.testing.assert_close(flow.log_prob(x, cond), log_prob)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v, cond)[0].sum(0), z)
    oracle = standard_normal_log_prob(z) - torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
    torch.testing.assert_close(log_prob, oracle)


def score(flow, x, cond=None, **options):
    return torch.autograd.grad(flow.log_prob(x, cond).sum(), x, **options)[0]


@each
@conditioned
def test_score_against_finite_differences(name, cond_dim):
    flow = perturbed(lambda: FLOWS[name](3, cond_dim))
    x, cond = inputs(flow)
    step = 1e-5 * torch.eye(3).double()
    differences = [(flow.log_prob(x + e, cond) - flow.log_prob(x - e, cond)) / 2e-5 for e in step]
    oracle = torch.stack(differences, dim=1).detach()
    torch.testing.assert_close(score(flow, x.requires_grad_(), cond), oracle, atol=1e-7, rtol=1e-6)


@each
def test_score_matching_reaches_every_parameter(name):
    """By double backward; a shift of the kinks of a piecewise linear flow moves no gradient."""
    flow = perturbed(lambda: FLOWS[name](3, 2))
    x, cond = inputs(flow, n=32)
    score(flow, x.requires_grad_(), cond, create_graph=True).square().sum().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@each
@conditioned
def test_likelihood_reaches_every_parameter(name, cond_dim):
    assert_gradient_reaches_all(perturbed(lambda: FLOWS[name](3, cond_dim)))


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(list(FLOWS)),
    n=st.integers(0, 4),
    dim=st.integers(2, 6),
    cond_dim=st.integers(0, 3),
    seed=st.integers(0, 10),
)
def test_round_trip_of_any_shape(name, n, dim, cond_dim, seed):
    flow = perturbed(lambda: FLOWS[name](dim, cond_dim))
    cond = normal(n, cond_dim, seed=seed) if cond_dim else None
    x = normal(n, dim, seed=seed, scale=3.0)
    z, log_det = flow.inverse(x, cond)
    assert z.shape == x.shape
    assert log_det.shape == (n,)
    torch.testing.assert_close(flow(z, cond)[0], x, atol=1e-8, rtol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(FLOWS)),
    point=st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_extremes_stay_finite(name, point, dtype):
    flow = perturbed(lambda: FLOWS[name](3), dtype=dtype)
    x = torch.tensor([point], dtype=dtype, requires_grad=True)
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    sampled, _ = flow(x.detach())
    for value in (log_prob, sampled, x.grad, *(p.grad for p in flow.parameters())):
        assert torch.isfinite(value).all()


@each
@torch.no_grad()
def test_autocast_rounds_the_networks_alone(name):
    flow = perturbed(lambda: FLOWS[name](3, 2), dtype=torch.float32)
    x, cond = (value.float() for value in inputs(flow))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow.log_prob(x, cond)
        assert flow.sample(5, cond).dtype == torch.float32
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, flow.log_prob(x, cond), atol=0.3, rtol=0.02)


def test_no_layers_are_a_gaussian():
    flow = perturbed(lambda: NormalizingFlow(2, 0), amount=0.5)
    (layer,) = flow.layers
    W, x = layer.linear(torch.eye(2).double()).T, normal(5, 2)
    oracle = torch.distributions.MultivariateNormal(layer.bias, W @ W.T).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), oracle)


def test_the_plain_flow_is_layers_and_a_linear_map():
    flow = NormalizingFlow(2, 3, "swish", linear="orthogonal")
    assert [layer.activation.name for layer in flow.layers] == ["swish"] * 3 + ["trivial"]
    assert NormalizingFlow(1).log_prob(torch.zeros(4, 1)).shape == (4,)


@each
def test_samples_come_from_the_density(name):
    """Of the samples, as many lie where the density is above a level as the grid says."""
    flow = perturbed(lambda: FLOWS[name](2))
    samples = flow.sample(20_000, generator=torch.Generator().manual_seed(0))
    again = flow.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(samples, again)
    x, area = grid()
    with torch.no_grad():
        density, level = flow.log_prob(x).exp(), 0.05
        share = density[density > level].sum() * area
        found = (flow.log_prob(samples).exp() > level).double().mean()
    assert 0.1 < share < 0.95
    assert abs(found - share) < 0.02


def test_state_goes_from_one_flow_to_another():
    for make in FLOWS.values():
        flow, x = perturbed(lambda make=make: make(4)), normal(3, 4)
        torch.manual_seed(5)
        other = make(4).double()
        assert not torch.allclose(other.log_prob(x), flow.log_prob(x))
        other.load_state_dict(flow.state_dict())
        assert torch.equal(other.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalizingFlow(0), "dim must be at least 1; got 0"),
        (lambda: NormalizingFlow(2, -1), "n_flows must be at least 0; got -1"),
        (lambda: NormalizingFlow(2, 1, "relu"), "activation must be one of"),
        (lambda: NormalizingFlow(2, 0, "relu"), "activation must be one of"),
        (lambda: RealNVP(1), "dim must be at least 2; got 1"),
        (lambda: RealNVP(2, 0), "n_layers must be at least 1; got 0"),
        (lambda: NeuralSplineFlow(1), "dim must be at least 2; got 1"),
        (lambda: NeuralSplineFlow(2, 0), "n_layers must be at least 1; got 0"),
        (lambda: NormalizingFlow(2).log_prob(torch.zeros(3, 4)), r"x must have shape \(B, 2\)"),
        (lambda: RealNVP(2).log_prob(torch.zeros(3, 2), torch.zeros(3, 1)), "cond must be None"),
        (lambda: RealNVP(2, cond_dim=1).log_prob(torch.zeros(3, 2)), r"cond must be of shape"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
