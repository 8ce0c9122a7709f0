"""Solvers against exact flows, orders of convergence by slope, and moments."""

import pytest
import torch
from exact import mixture_2d
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib import (
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    GaussianMixture,
    Linear,
    NetDenoiser,
    linear_betas,
)
from course_lib.samplers import (
    SOLVERS,
    ancestral,
    cosine_grid,
    ddim,
    karras_grid,
    lambda_grid,
    sample,
    uniform_grid,
)

STOCHASTIC = {"ancestral", "euler_maruyama", "predictor_corrector", "sde_dpm_solver_pp_2m"}
DETERMINISTIC = sorted(set(SOLVERS) - STOCHASTIC)


def gaussian(path, std=1.0, mean=0.0, dim=1):
    """One Gaussian: its probability-flow ODE is solved by hand."""
    means = torch.full((1, dim), mean, dtype=torch.float64)
    covs = std**2 * torch.eye(dim, dtype=torch.float64)[None]
    return GaussianMixture(means, covs, torch.ones(1, dtype=torch.float64), path)


def exact_flow(path, x, t, s, std, mean):
    """Map quantiles: (x - alpha m) / sqrt(alpha^2 std^2 + sigma^2) stays as it is."""
    t, s = torch.as_tensor([t, s], dtype=torch.float64)
    spread = [torch.sqrt(path.alpha(u) ** 2 * std**2 + path.sigma(u) ** 2) for u in (t, s)]
    return path.alpha(s) * mean + spread[1] / spread[0] * (x - path.alpha(t) * mean)


COARSER = {"heun": 2, "dpm_solver_3": 2, "rk4": 4}


def fewer(ts, name):
    """A grid for one solver: dopri5 chooses its own steps, and high orders need fewer."""
    return ts[[0, -1]] if name == "dopri5" else ts[:: COARSER.get(name, 1)]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_fine_grid_reaches_the_exact_flow_map(path, name):
    denoiser = gaussian(path, std=0.5, mean=1.0)
    x = (
        torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        * path.sigma(torch.tensor(1.0)).item()
    )
    if isinstance(path, VE):  # sigma spans a factor of 2000: equal steps in its logarithm
        ts = lambda_grid(path, 1000)
    else:
        ts = uniform_grid(path, 500, t_max=1.0 if path.alpha(torch.ones(1)) > 1e-6 else 0.998)
    ts = fewer(ts, name)
    expected = exact_flow(path, x, ts[0], 0.0, 0.5, 1.0)
    scale = expected.abs().max()
    error = (SOLVERS[name](denoiser, x, ts) - expected).abs().max() / scale
    # DiscreteVP's noise rate jumps between steps, which costs a slope at a knot O(1/T).
    better = 3e-3 if isinstance(path, DiscreteVP) else 1e-3
    assert error < (2e-2 if name in ("euler", "ddim") else better)


def test_ddim_is_euler_in_the_right_variable():
    """On VE, DDIM is Euler in sigma: x += (sigma_s - sigma_t) eps."""
    path, ts = VE(0.1, 5.0), torch.tensor([0.8, 0.5], dtype=torch.float64)
    denoiser = mixture_2d(path)
    x = 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.full((6,), 0.8, dtype=torch.float64)
    sigma_t, sigma_s = path.sigma(ts)
    by_hand = x + (sigma_s - sigma_t) * denoiser.noise(x, t)
    torch.testing.assert_close(ddim(denoiser, x, ts), by_hand)


def test_ddpm_step_by_hand():
    """Ho et al., algorithm 2, in DDPM's own letters, both variances."""
    path = DiscreteVP(linear_betas(1000))
    denoiser = mixture_2d(path)
    n, x = 300, torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    beta, bar = path.betas[n - 1], path.alpha_bars[n - 1]
    bar_before = path.alpha_bars[n - 2]
    t = torch.full((5,), n / 1000, dtype=torch.float64)
    mean = (x - beta / (1 - bar).sqrt() * denoiser.noise(x, t)) / (1 - beta).sqrt()
    z = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(7))
    ts = torch.tensor([n / 1000, (n - 1) / 1000], dtype=torch.float64)
    variances = {"small": beta * (1 - bar_before) / (1 - bar), "large": beta}
    for name, variance in variances.items():
        step = ancestral(denoiser, x, ts, variance=name, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(step, mean + variance.sqrt() * z)


def test_ddim_with_eta_one_is_ddpm_with_the_small_variance():
    denoiser = mixture_2d(DiscreteVP(linear_betas(1000)))
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = uniform_grid(denoiser.path, 40)
    a = ddim(denoiser, x, ts[:-1], eta=1.0, generator=torch.Generator().manual_seed(5))
    b = ancestral(denoiser, x, ts[:-1], generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_keeps_a_standard_normal(path, name):
    """Data N(0, 1): every marginal of a VP path is N(0, 1), others are scaled ones."""
    denoiser = gaussian(path)
    ts = lambda_grid(path, 600) if isinstance(path, VE) else uniform_grid(path, 200)
    ts = fewer(ts, name)
    x = sample(denoiser, (10_000, 1), solver=name, ts=ts, seed=0)
    assert x.mean().abs() < 0.03
    assert x.std() == pytest.approx(1, abs=0.03)


def test_variance_choices_of_ddpm_bracket_the_truth_at_few_steps():
    """Ho et al., section 3.2: beta is right for N(0, 1) data, beta-tilde for a point."""
    path = DiscreteVP(linear_betas(1000))
    ts = uniform_grid(path, 10)[:-1]  # stop before the last, noiseless step
    normal = gaussian(path)
    x = sample(normal, (100_000, 1), solver="ancestral", ts=ts, variance="large")
    assert x.std() == pytest.approx(1, abs=0.01)
    small = sample(normal, (100_000, 1), solver="ancestral", ts=ts, variance="small")
    assert small.std() < 0.97
    point = gaussian(path, std=1e-6)
    small = sample(point, (100_000, 1), solver="ancestral", ts=ts, variance="small")
    assert small.std() == pytest.approx(path.sigma(ts[-1]).item(), rel=0.01)
    large = sample(point, (100_000, 1), solver="ancestral", ts=ts, variance="large")
    assert large.std() > 1.5 * path.sigma(ts[-1])


def test_ancestral_reproduces_the_mixture():
    mixture = mixture_2d(VP())
    x = sample(mixture, (20_000, 2), solver="ancestral", steps=300, seed=1)
    weights = mixture._log_weights.exp()
    torch.testing.assert_close(x.mean(0), weights @ mixture.means, rtol=0, atol=0.03)
    nearest = torch.cdist(x, mixture.means).argmin(1)
    expected = torch.cdist(mixture.sample(20_000, generator=torch.Generator()), mixture.means)
    share = expected.argmin(1).bincount() / 20_000
    torch.testing.assert_close(nearest.bincount() / 20_000, share, rtol=0, atol=0.015)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp_2m", "ancestral"])
def test_last_step_to_zero_noise_returns_the_data_prediction(name):
    denoiser = mixture_2d(VP())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = torch.tensor([0.3, 0.0], dtype=torch.float64)
    expected = denoiser.data(x, torch.full((4,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(SOLVERS[name](denoiser, x, ts), expected)
    ts = torch.tensor([0.5, 0.3, 0.0], dtype=torch.float64)
    assert SOLVERS[name](denoiser, x, ts).isfinite().all()


@pytest.mark.parametrize("path", [Linear(), CosineVP()], ids=["Linear", "CosineVP"])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_pure_noise_is_a_fine_start(path, name):
    """alpha = 0 at t = 1: every solver must start there without dividing by it."""
    x = sample(mixture_2d(path), (6, 2), solver=name, steps=5)
    assert x.isfinite().all()


def test_grids(path):
    t_max = 0.999 if path.alpha(torch.ones(1)) < 1e-6 else 1.0
    for grid in (uniform_grid, cosine_grid, lambda_grid, karras_grid):
        ts = grid(path, 10, t_max=t_max)
        assert ts.shape == (11,)
        assert ts[0] == pytest.approx(t_max, abs=2e-3)
        assert ts[-1] == 0
        assert (ts.diff() < 0).all()
    if not isinstance(path, DiscreteVP):
        lam = path.log_snr_half(lambda_grid(path, 10, t_max=t_max)[:-1])
        torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(9), rtol=1e-6, atol=1e-6)


def test_karras_grid_is_equation_5():
    path, n, rho = VE(0.01, 80.0), 8, 7.0
    ts = karras_grid(path, n, t_min=0.1)
    low, high = path.sigma(torch.tensor([0.1, 1.0], dtype=torch.float64))
    i = torch.arange(n, dtype=torch.float64)
    expected = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    torch.testing.assert_close(path.sigma(ts[:-1]), expected)


def test_discrete_grid_visits_every_step():
    path = DiscreteVP(linear_betas(100))
    expected = torch.arange(100, -1, -1, dtype=torch.float64) / 100
    torch.testing.assert_close(uniform_grid(path, 100), expected, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="take fewer steps"):
        uniform_grid(path, 150)


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        (lambda: uniform_grid(VP(), 0), "steps must be at least 1; got 0"),
        (lambda: karras_grid(VP(), 1), "steps must be at least 2"),
        (lambda: lambda_grid(Linear(), 5), "t_max=0.999"),
        (lambda: lambda_grid(VP(), 5, t_min=0.0), "must be finite"),
    ],
)
def test_bad_grids_are_refused(grid, match):
    with pytest.raises(ValueError, match=match):
        grid()


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_bad_times_are_refused(name):
    denoiser, x = gaussian(VP()), torch.zeros(3, 1, dtype=torch.float64)
    for ts, match in (
        ([0.0, 0.5, 1.0], "must fall"),
        ([0.5, 0.5], "must fall"),
        ([1.5, 0.5], r"\[0, 1\]"),
        ([0.5], "at least two"),
    ):
        with pytest.raises(ValueError, match=match):
            SOLVERS[name](denoiser, x, torch.tensor(ts))


def test_options_are_checked():
    with pytest.raises(TypeError, match="got Linear: a network becomes one"):
        sample(nn.Linear(1, 1), (2, 1))
    denoiser = gaussian(VP())
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        sample(denoiser, (2, 1), solver="ddim", eta=1.5)
    with pytest.raises(ValueError, match='"small" or "large"'):
        sample(denoiser, (2, 1), solver="ancestral", variance="tiny")
    with pytest.raises(ValueError, match=r"one of euler, .*ddim, .*got 'dpm'"):
        sample(denoiser, (2, 1), solver="dpm")


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_callback_sees_every_step(name):
    seen = []
    ts = torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64)
    x = torch.ones(2, 1, dtype=torch.float64)
    out = SOLVERS[name](gaussian(VP()), x, ts, callback=lambda i, s, x: seen.append((i, s, x)))
    assert [i for i, _, _ in seen] == [0, 1]
    assert [s.item() for _, s, _ in seen] == [0.6, 0.2]
    assert torch.equal(seen[-1][2], out)


def test_sample_trajectory_seed_and_global_state(capsys):
    denoiser = mixture_2d(VP())
    state = torch.get_rng_state()
    a = sample(denoiser, (8, 2), steps=6, seed=3, return_trajectory=True, progress=True)
    assert "6/6" in capsys.readouterr().err
    assert a.shape == (7, 8, 2)
    assert a.dtype == torch.float64
    assert torch.equal(a[-1], sample(denoiser, (8, 2), steps=6, seed=3))
    assert not torch.equal(a[-1], sample(denoiser, (8, 2), steps=6, seed=4))
    assert torch.equal(state, torch.get_rng_state())


def test_condition_reaches_the_network():
    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return x * cond[:, None]

    denoiser = NetDenoiser(Net(), VP())
    cond = torch.tensor([0.0, 1.0])
    for name in SOLVERS:
        x = sample(denoiser, (2, 3), solver=name, steps=4, cond=cond)
        assert x.shape == (2, 3)


class Half(nn.Module):
    def forward(self, x, t, cond=None):
        return x / 2


@pytest.mark.parametrize(
    ("path", "predicts"),
    [(VP(), "noise"), (CosineVP(), "v"), (VE(), "noise"), (Linear(), "velocity"), (VP(), "data")],
    ids=lambda value: str(value).split("(")[0],
)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_network_is_solved_from_end_to_end(name, path, predicts):
    """Float32, t = 1 to 0, with whichever quantities are singular there."""
    x = sample(NetDenoiser(Half(), path, predicts), (4, 3), solver=name, steps=6)
    assert x.isfinite().all()
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_noise_prediction_says_what_it_cannot_do_at_alpha_zero(name):
    """At alpha = 0 the noise alone tells nothing of the data."""
    denoiser = NetDenoiser(Half(), Linear(), "noise")
    with pytest.raises(ValueError, match=r"singular on Linear\(\) at t = 1.*keep t away"):
        sample(denoiser, (2, 1), solver=name, steps=4)
    ts = torch.linspace(0.999, 0, 5)
    assert sample(denoiser, (2, 1), solver=name, ts=ts).isfinite().all()


class _Passes(TorchDispatchMode):
    """Counts operations that write as many numbers as a batch has."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += isinstance(out, torch.Tensor) and out.numel() == self.size
        return out


class _Untouched(torch.nn.Module):
    def forward(self, x, t, cond=None):
        return x


@pytest.mark.parametrize(
    ("solver", "passes"), [("ddim", 10 * 2), ("dpm_solver_pp_2m", 2 + 8 * 4 + 2)]
)
def test_a_step_goes_over_the_batch_once_a_term(solver, passes):
    path = DiscreteVP(linear_betas(1000))
    denoiser, x = NetDenoiser(_Untouched(), path, "noise"), torch.randn(7, 97)
    with torch.no_grad(), _Passes(x.numel()) as counter:
        SOLVERS[solver](denoiser, x, uniform_grid(path, 10))
    assert counter.count == passes
