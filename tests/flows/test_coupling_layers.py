"""Couplings: what they leave alone, and the Jacobian of what they change."""

import pytest
import torch
from jacobians import (
    assert_change_of_variables,
    assert_gradient_reaches_all,
    inputs,
    normal,
    perturbed,
)

from course_lib.flows.coupling_layers import ActNorm, AffineCoupling, SplineCoupling

COUPLINGS = {"affine": AffineCoupling, "spline": SplineCoupling}
each = pytest.mark.parametrize("kind", COUPLINGS.values(), ids=list(COUPLINGS))
conditioned = pytest.mark.parametrize("cond_dim", [0, 3])


@each
@conditioned
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("index", [0, 3])
def test_change_of_variables(kind, dim, index, cond_dim):
    assert_change_of_variables(perturbed(lambda: kind(dim, index, hidden=8, cond_dim=cond_dim)))


@each
@conditioned
def test_gradient_reaches_every_parameter(kind, cond_dim):
    flow = perturbed(lambda: kind(4, hidden=8, cond_dim=cond_dim), amount=0.3)
    assert_gradient_reaches_all(flow)


@each
def test_the_kept_half_stays_and_the_other_moves(kind):
    flow = perturbed(lambda: kind(6, hidden=8), amount=0.3)
    x, _ = inputs(flow)
    z, _ = flow.inverse(x)
    assert torch.equal(z[:, flow.kept], x[:, flow.kept])
    assert (z[:, flow.changed] - x[:, flow.changed]).abs().amin() > 1e-6


@each
def test_starts_as_the_identity_whatever_the_condition(kind):
    flow = kind(4, cond_dim=3).double()
    x, cond = inputs(flow)
    z, log_det = flow.inverse(x, cond)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [2, 3, 4, 7, 16, 20])
def test_any_two_coordinates_meet_both_ways(dim):
    met = torch.zeros(dim, dim, dtype=torch.bool)
    for index in range(2 * (dim - 1).bit_length()):
        flow = AffineCoupling(dim, index, hidden=1)
        assert sorted([*flow.kept.tolist(), *flow.changed.tolist()]) == list(range(dim))
        assert len(flow.kept) > 0
        met[flow.changed[:, None], flow.kept] = True
    assert torch.equal(met, ~torch.eye(dim, dtype=torch.bool))


def test_affine_coupling_by_hand():
    flow = perturbed(lambda: AffineCoupling(4, hidden=8), amount=0.3)
    z, _ = inputs(flow)
    raw, shift = flow.net(z[:, flow.kept]).unflatten(1, (2, 2)).unbind(-1)
    log_scale = 2 * torch.tanh(raw / 2)
    x, log_det = flow(z)
    torch.testing.assert_close(x[:, flow.changed], z[:, flow.changed] * log_scale.exp() + shift)
    torch.testing.assert_close(log_det, log_scale.sum(1))


def test_spline_coupling_is_the_identity_beyond_its_bound():
    flow = perturbed(lambda: SplineCoupling(2, hidden=8, bound=2.0), amount=0.5)
    x = normal(50, 2, scale=3.0)
    z, _ = flow.inverse(x)
    outside = x[:, flow.changed].abs() > 2
    moved = (z - x)[:, flow.changed].abs()
    assert moved[outside].max() < 1e-14
    assert moved[~outside].max() > 0.1


def test_act_norm_scales_and_shifts():
    flow = perturbed(lambda: ActNorm(3), amount=0.5)
    z, _ = inputs(flow)
    torch.testing.assert_close(flow(z)[0], z * flow.log_scale.exp() + flow.bias)
    assert_change_of_variables(flow)
    assert_gradient_reaches_all(flow)


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 1}, "dim must be at least 2; got 1"),
        ({"index": -1}, "index must be at least 0; got -1"),
        ({"hidden": 0}, "hidden must be at least 1; got 0"),
        ({"cond_dim": -1}, "cond_dim must be at least 0; got -1"),
    ],
)
def test_errors_of_both(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": 2, **options})


def test_other_errors():
    with pytest.raises(ValueError, match="bins must be at least 1; got 0"):
        SplineCoupling(2, bins=0)
    with pytest.raises(ValueError, match=r"bound must be above 0; got -1\.0"):
        SplineCoupling(2, bound=-1.0)
    with pytest.raises(ValueError, match="dim must be at least 1; got 0"):
        ActNorm(0)
