"""Paths against published values, autograd, and themselves."""

from itertools import product

import pytest
import torch
from exact import PATHS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad

from course_lib.paths import (
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    Linear,
    Path,
    cosine_betas,
    expand,
    linear_betas,
    shared_time,
)
from course_lib.samplers.grids import knots

FACES = ["noise", "data", "v", "velocity", "score"]
INNER = torch.linspace(0.0137, 0.9871, 50, dtype=torch.float64)  # off the knots of DiscreteVP
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_published_values_of_linear_betas():
    bars = DiscreteVP(linear_betas(1000)).alpha_bars
    expected = torch.tensor([0.9999, 0.897018, 0.0785872, 4.03583e-5], dtype=torch.float64)
    torch.testing.assert_close(bars[[0, 99, 499, 999]], expected, rtol=5e-6, atol=0)


def test_published_values_of_cosine_betas():
    path = DiscreteVP(cosine_betas(1000))
    expected = torch.tensor([0.999959, 0.972093, 0.493844, 2.42877e-6], dtype=torch.float64)
    torch.testing.assert_close(path.alpha_bars[[0, 99, 499, 998]], expected, rtol=5e-6, atol=0)
    assert path.betas[-1] == pytest.approx(0.999)


def test_published_values_of_vp():
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    alpha = torch.tensor([0.946722, 0.281183, 0.006572], dtype=torch.float64)
    sigma = torch.tensor([0.322053, 0.959654, 0.999978], dtype=torch.float64)
    torch.testing.assert_close(VP().alpha(t), alpha, rtol=0, atol=5e-7)
    torch.testing.assert_close(VP().sigma(t), sigma, rtol=0, atol=5e-7)


def test_cosine_is_the_limit_of_its_betas():
    t = torch.arange(1, 990, dtype=torch.float64) / 1000
    discrete = DiscreteVP(cosine_betas(1000))
    torch.testing.assert_close(discrete.alpha(t), CosineVP().alpha(t), rtol=1e-10, atol=0)


def test_betas_come_back_and_knots_are_alpha_bar(generator):
    betas = torch.rand(37, dtype=torch.float64, generator=generator) * 0.9 + 0.05
    path = DiscreteVP(betas)
    torch.testing.assert_close(path.betas, betas)
    t = torch.arange(38) / 37  # float32 on purpose: n / T must still mean step n
    expected = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
    torch.testing.assert_close(path.alpha(t).double() ** 2, expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(path.alpha_bars, expected[1:])


def test_derivatives_agree_with_autograd(path):
    for function, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        t = INNER.clone().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # constant
            expected = torch.zeros_like(t)
        else:
            (expected,) = grad(value.sum(), t)
        torch.testing.assert_close(derivative(INNER), expected, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(path.sigma_d_sigma(INNER), path.sigma(INNER) * path.d_sigma(INNER))


def test_t_of_lambda_inverts_log_snr_half(path):
    torch.testing.assert_close(path.t_of_lambda(path.log_snr_half(INNER)), INNER, rtol=0, atol=1e-9)


def test_ends_of_time(path):
    alpha, sigma = path.alpha(ENDS), path.sigma(ENDS)
    assert alpha[0] == 1
    assert sigma[0] == (path.sigma_min if isinstance(path, VE) else 0)
    assert sigma[1] == pytest.approx(20.0 if isinstance(path, VE) else 1, rel=1e-4)
    for f in (path.log_snr_half, path.d_alpha, path.d_sigma, path.sigma_d_sigma):
        assert not f(ENDS).isnan().any(), f
    assert path.sigma_d_sigma(ENDS).isfinite().all()
    torch.testing.assert_close(path.t_of_lambda(path.log_snr_half(ENDS)), ENDS, rtol=0, atol=1e-9)


def test_float32_is_as_good_as_float32_can_be(path):
    t = torch.linspace(1e-4, 0.9999, 999)
    torch.testing.assert_close(path.sigma(t).double(), path.sigma(t.double()), rtol=1e-4, atol=0)
    torch.testing.assert_close(path.alpha(t).double(), path.alpha(t.double()), rtol=5e-4, atol=0)


def test_forward_sde_keeps_the_moments_of_the_path(path):
    """d/dt alpha = f alpha, and d/dt sigma^2 = 2 f sigma^2 + g^2."""
    f, g2 = path.drift_diffusion(INNER)
    torch.testing.assert_close(f * path.alpha(INNER), path.d_alpha(INNER))
    variance_rate = 2 * f * path.sigma(INNER) ** 2 + g2
    torch.testing.assert_close(variance_rate, 2 * path.sigma_d_sigma(INNER), atol=1e-9, rtol=1e-6)
    assert (g2 >= 0).all()


def test_vp_drift_is_minus_half_beta():
    f, g2 = VP(0.1, 20).drift_diffusion(INNER)
    beta = 0.1 + 19.9 * INNER
    torch.testing.assert_close(f, -beta / 2)
    torch.testing.assert_close(g2, beta)


def test_velocity_is_the_time_derivative_of_the_sample(path, generator):
    x0, eps = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    _, expected = torch.func.jvp(
        lambda t: expand(path.alpha(t), x0) * x0 + expand(path.sigma(t), x0) * eps,
        (INNER,),
        (torch.ones_like(INNER),),
    )
    torch.testing.assert_close(path.velocity(x0, eps, INNER), expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PATHS)),
    source=st.sampled_from(FACES),
    target=st.sampled_from(FACES),
    shape=st.sampled_from([(1,), (3,), (3, 3), (4, 2), (2, 1, 2, 2), (2, 2)]),
    time=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_convert_there_and_back(name, source, target, shape, time, seed):
    path = PATHS[name]
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    t = torch.linspace(time, 1 - time, shape[0], dtype=torch.float64)
    xt = path.sample(x0, t, eps)
    value = path.target(x0, eps, t, source)
    there = path.convert(value, xt, t, source, target)
    torch.testing.assert_close(there, path.target(x0, eps, t, target), rtol=1e-6, atol=1e-7)
    back = path.convert(there, xt, t, target, source)
    torch.testing.assert_close(back, value, rtol=1e-6, atol=1e-7)


def test_time_belongs_to_samples_even_when_batch_equals_dimension():
    """B = D = 3 is where plain broadcasting multiplies columns instead of rows."""
    x0, eps = torch.ones(3, 3), torch.zeros(3, 3)
    t = torch.tensor([0.0, 0.5, 1.0])
    rows = Linear().sample(x0, t, eps)
    assert rows.tolist() == [[1.0] * 3, [0.5] * 3, [0.0] * 3]


def test_salimans_ho_v_and_tweedie_by_hand():
    path, t = VP(), torch.tensor([0.3], dtype=torch.float64)
    xt, v = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.2]], dtype=torch.float64)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    torch.testing.assert_close(path.convert(v, xt, t, "v", "data"), alpha * xt - sigma * v)
    torch.testing.assert_close(path.convert(v, xt, t, "v", "noise"), alpha * v + sigma * xt)
    tweedie = (xt + sigma**2 * v) / alpha
    torch.testing.assert_close(path.convert(v, xt, t, "score", "data"), tweedie)


def test_conversions_that_are_finite_at_the_ends_work_there():
    x = torch.tensor([[2.0]], dtype=torch.float64)
    zero, one = ENDS[:1], ENDS[1:]
    assert Linear().convert(x, x, one, "velocity", "data").item() == 0  # eps = 2, v = eps - x0
    assert VP().convert(5 * x, x, zero, "score", "data").item() == 2  # clean data is x_0
    assert VP().convert(5 * x, x, zero, "noise", "data").item() == 2


@pytest.mark.parametrize(
    ("path", "t", "source", "target"),
    [
        (VP(), 0.0, "noise", "score"),
        (VP(), 0.0, "data", "noise"),
        (VP(), 0.0, "noise", "velocity"),
        (Linear(), 1.0, "noise", "data"),
        (CosineVP(), 1.0, "noise", "data"),
        (DiscreteVP(linear_betas(100)), 0.0, "v", "score"),
    ],
)
def test_singular_conversions_are_refused(path, t, source, target):
    x = torch.ones(1, 2, dtype=torch.float64)
    t = torch.tensor([t], dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"converting {source} to {target} is singular.*t = "):
        path.convert(x, x, t, source, target)


def test_singular_drift_and_velocity_are_refused():
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="drift"):
        Linear().drift_diffusion(torch.ones(1))
    with pytest.raises(ValueError, match="velocity"):
        VP().velocity(x, x, torch.zeros(1))


def test_bad_arguments_are_named():
    x, t = torch.zeros(4, 2), torch.full((4,), 0.5)
    path = VP()
    with pytest.raises(ValueError, match=r"t must have shape \(B,\) = \(4,\)"):
        path.sample(x, t[:2], x)
    with pytest.raises(ValueError, match=r"t must have shape"):
        path.sample(x, torch.tensor(0.5), x)
    with pytest.raises(TypeError, match=r"one time per sample; got float: write torch\.full"):
        path.sample(x, 0.5, x)
    with pytest.raises(ValueError, match="eps must have the shape"):
        path.sample(x, t, x[:, :1])
    with pytest.raises(ValueError, match=r"\[0, 1\].*1\.5"):
        path.sample(x, t + 1, x)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        path.convert(x, x, t * torch.nan, "noise", "data")
    with pytest.raises(ValueError, match="one of noise, data, v, velocity, score; got 'eps'"):
        path.convert(x, x, t, "noise", "eps")
    with pytest.raises(ValueError, match="got 'eps'"):
        path.convert(x, x, t, "eps", "eps")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VP(1.0, 0.5), "beta_min"),
        (lambda: VE(2.0, 1.0), "sigma_min"),
        (lambda: CosineVP(0.0), "s > 0"),
        (lambda: DiscreteVP(torch.tensor([0.1, 1.0])), r"\(0, 1\)"),
        (lambda: DiscreteVP(torch.zeros(2, 2)), "1-D"),
        (lambda: linear_betas(10), "cosine_betas"),
        (lambda: linear_betas(0), "T=0"),
        (lambda: cosine_betas(0), "T >= 1"),
    ],
)
def test_bad_paths_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_snap_gives_each_step_its_share():
    path = DiscreteVP(linear_betas(50))
    t = torch.arange(1, 5001, dtype=torch.float64) / 5000
    steps = (path.snap(t) * 50).round().long()
    assert steps.bincount().tolist() == [0] + [100] * 50
    knots = torch.arange(51) / 50
    torch.testing.assert_close(path.snap(knots), knots, rtol=0, atol=0)
    assert VP().snap(t) is t


def test_other_lengths_end_equally_noisy_and_repr_says_so():
    path = DiscreteVP(linear_betas(100))
    assert path.alpha_bars[-1] == pytest.approx(4e-5, rel=0.5)
    assert repr(path).startswith("DiscreteVP(T=100, alpha_bar_T=")


def test_the_base_class_asks_for_a_subclass():
    t = torch.ones(1)
    for method in ("alpha", "sigma", "d_alpha", "sigma_d_sigma", "t_of_lambda"):
        with pytest.raises(NotImplementedError):
            getattr(Path(), method)(t)


def test_a_shared_time_gives_the_same_numbers(path, generator):
    """A time expanded from one, as in a solver, takes a shorter way to the same result."""
    xt, value = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    one = torch.tensor(0.37, dtype=torch.float64).expand(5)
    assert shared_time(one) == 0.37
    assert shared_time(one.clone()) is None
    for source, target in product(FACES, repeat=2):
        short = path.convert(value, xt, one, source, target)
        torch.testing.assert_close(short, path.convert(value, xt, one.clone(), source, target))


def test_a_shared_time_keeps_its_derivative():
    """By reverse and forward mode: a number would have none."""
    xt = torch.linspace(-1, 1, 4, dtype=torch.float64)

    def data(t):
        return VP().convert(xt, xt, t.expand(4), "noise", "data").sum()

    t = torch.tensor(0.4, dtype=torch.float64)
    quotient = (data(t + 1e-6) - data(t - 1e-6)) / 2e-6
    backward = torch.func.grad(data)(t)
    _, forward = torch.func.jvp(data, (t,), (torch.ones_like(t),))
    (plain,) = torch.autograd.grad(data(t.requires_grad_()), t)
    for derivative in (backward, forward, plain):
        torch.testing.assert_close(derivative, quotient, rtol=1e-6, atol=1e-6)


def test_nothing_is_kept_of_a_path_that_may_change():
    class Learned(VP):
        fixed, scale = False, torch.tensor(1.0, dtype=torch.float64)

        def alpha(self, t):
            return Learned.scale * super().alpha(t)

    path, xt = Learned(), torch.ones(2, 1, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64).expand(2)
    before = path.convert(xt, xt, t, "noise", "data")
    Learned.scale.mul_(0.9)
    torch.testing.assert_close(path.convert(xt, xt, t, "noise", "data"), before / 0.9)


def test_infinite_lambda_is_the_data(path):
    (start,) = path.t_of_lambda(torch.tensor([torch.inf], dtype=torch.float64))
    if not isinstance(path, VE):  # its noise is nowhere 0
        assert 0 <= start <= 1e-12


def test_a_batch_of_predictions_at_one_sample_is_converted_by_vmap():
    x, t = torch.ones(4, 2), torch.tensor(0.5).expand(4)
    values = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    got = torch.func.vmap(lambda v: Linear().convert(v, x, t, "velocity", "data"))(values)
    torch.testing.assert_close(got, x - 0.5 * values)


def test_the_times_of_a_solver_carry_their_number_until_a_derivative_is_asked_for():
    ts = torch.linspace(1, 0, 5, dtype=torch.float64)
    t = knots(VP(), torch.zeros(3, 2), ts)[1].times
    assert shared_time(t) == 0.75
    assert shared_time(t.clone()) is None
    assert shared_time(t.requires_grad_()) is None
