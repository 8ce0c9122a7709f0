"""The adaptive solver against torchdiffeq, scipy and its own tolerance."""

import numpy as np
import pytest
import torch
from exact import mixture_2d
from scipy.integrate import RK45, solve_ivp
from torchdiffeq import odeint

from course_lib import VP, DiscreteVP, GaussianMixture, Linear, NetDenoiser, linear_betas
from course_lib.samplers import CountEvaluations, dopri5, sample
from course_lib.samplers.ode import _dopri5_step


@pytest.fixture
def denoiser():
    return mixture_2d(VP())


@pytest.fixture
def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


ENDS = torch.tensor([1.0, 0.01], dtype=torch.float64)


def test_agrees_with_torchdiffeq_and_scipy(denoiser, x):
    def velocity(t, x):
        return denoiser.velocity(x, t.expand(len(x)))

    ours = dopri5(denoiser, x, ENDS, atol=1e-10, rtol=1e-10)
    theirs = odeint(velocity, x, ENDS, atol=1e-10, rtol=1e-10)[-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)

    def flat(t, y):
        return velocity(torch.tensor(t), torch.from_numpy(y).reshape(x.shape)).numpy().ravel()

    solution = solve_ivp(flat, ENDS.tolist(), x.numpy().ravel(), atol=1e-10, rtol=1e-10)
    np.testing.assert_allclose(ours.numpy().ravel(), solution.y[:, -1], rtol=0, atol=1e-8)


def test_one_step_is_scipys(denoiser, x):
    """Result, last slope and error estimate, against the tableau of scipy's RK45."""

    def velocity(x, t):
        return denoiser.velocity(x, torch.full((len(x),), t, dtype=x.dtype))

    t, h = 0.7, -0.2
    slopes = [velocity(x, t).numpy()]
    for c, row in zip(RK45.C[1:], RK45.A[1:], strict=True):
        point = x.numpy() + h * sum(a * k for a, k in zip(row, slopes, strict=False))
        slopes.append(velocity(torch.from_numpy(point), t + c * h).numpy())
    expected = x.numpy() + h * sum(b * k for b, k in zip(RK45.B, slopes, strict=True))
    slopes.append(velocity(torch.from_numpy(expected), t + h).numpy())
    error = -h * sum(
        e * k for e, k in zip(RK45.E, slopes, strict=True)
    )  # b5 - b4, scipy has b4 - b5
    result = _dopri5_step(velocity, x, t, t + h, velocity(x, t))
    for ours, theirs in zip(result, (expected, slopes[-1], error), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-14)


def test_error_follows_the_tolerance(denoiser, x):
    truth = dopri5(denoiser, x, ENDS, atol=1e-12, rtol=1e-12)
    errors, counts = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        counted = CountEvaluations(denoiser)
        out = dopri5(counted, x, ENDS, atol=tolerance, rtol=tolerance)
        errors.append((out - truth).abs().max().item())
        counts.append(counted.count)
    assert all(e < 30 * tol for e, tol in zip(errors, (1e-3, 1e-5, 1e-7), strict=True)), errors
    assert errors[0] > errors[1] > errors[2]
    assert counts[0] < counts[1] < counts[2]


def test_first_slope_is_the_last_of_the_step_before(denoiser, x):
    """Six evaluations a step and one more at the start, over all intervals of the grid."""
    counted = CountEvaluations(denoiser)
    dopri5(counted, x, torch.linspace(1, 0.1, 4, dtype=torch.float64))
    assert counted.count % 6 == 1


def test_steps_are_rejected_where_the_field_bends(x):
    """A narrow mixture: some steps fail, and the answer is still right."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    covs = 1e-4 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    denoiser = GaussianMixture(means, covs, torch.ones(2, dtype=torch.float64), Linear())
    seen = []
    velocity = denoiser.velocity
    denoiser.velocity = lambda x, t, cond=None: seen.append(t[0].item()) or velocity(x, t, cond)
    out = dopri5(denoiser, x, ENDS)
    assert any(b > a for a, b in zip(seen[1::6], seen[7::6], strict=False)), "no step was rejected"
    truth = dopri5(denoiser, x, ENDS, atol=1e-11, rtol=1e-11, max_steps=5000)
    torch.testing.assert_close(out, truth, rtol=0, atol=1e-3)


def test_norm_by_sample_guards_the_hardest_one(denoiser, x):
    """Among many easy points, one that decides late: the batch norm hides it."""
    narrow = GaussianMixture(
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
        torch.full((2, 1, 1), 0.01, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        Linear(),
    )
    hard = torch.tensor([[1e-3]], dtype=torch.float64)
    batch = torch.cat([hard, torch.full((999, 1), 2.0, dtype=torch.float64)])
    truth = dopri5(narrow, hard, ENDS, atol=1e-12, rtol=1e-12)
    error = {
        norm: (dopri5(narrow, batch, ENDS, norm=norm)[:1] - truth).abs().item()
        for norm in ("batch", "sample")
    }
    assert error["sample"] < 1e-4
    assert error["batch"] > 5 * error["sample"]
    alone = dopri5(narrow, hard, ENDS, norm="sample")
    torch.testing.assert_close(alone, dopri5(narrow, hard, ENDS))  # a batch of one


def test_states_at_every_time_of_the_grid(denoiser):
    ts = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    states = sample(denoiser, (5, 2), solver="dopri5", ts=ts, return_trajectory=True)
    direct = sample(denoiser, (5, 2), solver="dopri5", ts=ts[[0, 2]])
    assert states.shape == (3, 5, 2)
    torch.testing.assert_close(states[-1], direct, rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", [VP(), Linear(), DiscreteVP(linear_betas(1000))], ids=repr)
def test_a_network_may_be_singular_at_the_end(path):
    """Noise prediction, float32: the velocity does not exist at sigma = 0 (or alpha = 0)."""

    class Zero(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros_like(x)

    denoiser = NetDenoiser(Zero(), path)  # eps = 0: x / alpha stays as it is
    x = torch.ones(3, 2)
    ts = torch.tensor([0.5, 0.0])
    alpha = path.alpha(ts[:1])
    # DiscreteVP's noise rate jumps at a thousand times, some of them within the tolerance.
    rtol = 1e-3 if isinstance(path, DiscreteVP) else 1e-4
    torch.testing.assert_close(dopri5(denoiser, x, ts), x / alpha, rtol=rtol, atol=0)
    tiny = torch.tensor([1e-6, 0.0])  # wholly below t_min
    torch.testing.assert_close(dopri5(denoiser, x, tiny), x / path.alpha(tiny[:1]))


def test_a_field_that_stands_still():
    """N(0, 1) data on a variance-preserving path: the velocity is zero."""
    one = torch.ones(1, 1, dtype=torch.float64)
    denoiser = GaussianMixture(0 * one, one[None], one[0], VP())
    torch.testing.assert_close(dopri5(denoiser, one, ENDS), one)


def test_a_start_at_zero(denoiser):
    zero = torch.zeros(1, 2, dtype=torch.float64)
    near = torch.full_like(zero, 1e-7)
    from_zero, from_near = (
        dopri5(denoiser, x, torch.tensor([1.0, 0.0]), atol=1e-8, rtol=1e-8) for x in (zero, near)
    )
    torch.testing.assert_close(from_zero, from_near, rtol=1e-4, atol=1e-4)


def test_dopri5_options_are_checked(denoiser, x):
    with pytest.raises(ValueError, match="took max_steps = 3 steps and is still at t = 0"):
        dopri5(denoiser, x, ENDS, max_steps=3)
    for bad in ({"atol": 0.0}, {"rtol": -1.0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="needs atol > 0, rtol >= 0 and max_steps >= 1"):
            dopri5(denoiser, x, ENDS, **bad)
    with pytest.raises(ValueError, match='norm must be "batch" or "sample"; got \'max\''):
        dopri5(denoiser, x, ENDS, norm="max")


def test_a_field_that_is_nan_ends_in_an_error(x):
    class Broken(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return x * torch.nan

    with pytest.raises(ValueError, match="max_steps"):
        dopri5(NetDenoiser(Broken(), VP()), x, ENDS, max_steps=20)
