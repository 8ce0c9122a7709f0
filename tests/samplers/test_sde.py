"""Stochastic solvers: formulas of one step, and the distribution of many samples."""

import math
from functools import partial

import pytest
import torch
from exact import mixture_2d

from course_lib import VP, GaussianMixture, Linear
from course_lib.evaluation import mmd
from course_lib.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    euler,
    euler_maruyama,
    predictor_corrector,
    sample,
    sde_dpm_solver_pp_2m,
    uniform_grid,
)
from course_lib.samplers.sde import _langevin_step


@pytest.fixture
def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(7)


def test_euler_maruyama_without_noise_is_euler(path, x):
    ts = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)
    denoiser = mixture_2d(path)
    ours = euler_maruyama(denoiser, x, ts, eta=0.0, generator=generator())
    torch.testing.assert_close(ours, euler(denoiser, x, ts))


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_euler_maruyama_step_by_hand(x, eta):
    """f x - (1 + eta^2)/2 g^2 score, in the letters of the SDE."""
    path = VP()
    denoiser = mixture_2d(path)
    ts = torch.tensor([0.6, 0.5], dtype=torch.float64)
    beta = 0.1 + 0.6 * (20 - 0.1)
    score = denoiser.score(x, ts[:1].expand(6))
    drift = -beta / 2 * x - (1 + eta**2) / 2 * beta * score
    z = torch.empty_like(x).normal_(generator=generator())
    expected = x - 0.1 * drift + eta * math.sqrt(0.1 * beta) * z
    step = euler_maruyama(denoiser, x, ts, eta=eta, generator=generator())
    torch.testing.assert_close(step, expected)


def test_singular_ends_are_ddim_steps(x):
    denoiser = mixture_2d(Linear())
    for ends in ([1.0, 0.8], [0.2, 0.0]):
        ts = torch.tensor(ends, dtype=torch.float64)
        torch.testing.assert_close(euler_maruyama(denoiser, x, ts), ddim(denoiser, x, ts))


def test_one_step_of_the_stochastic_2m_is_ancestral(path, x):
    """Both draw from q(x_s | x_t, x_0), as long as nothing is extrapolated."""
    denoiser = mixture_2d(path)
    ts = torch.tensor([0.8, 0.5], dtype=torch.float64)
    a = sde_dpm_solver_pp_2m(denoiser, x, ts, generator=generator())
    torch.testing.assert_close(a, ancestral(denoiser, x, ts, generator=generator()))


def test_stochastic_2m_step_by_hand(x):
    """Lu et al., SDE-DPM-Solver++(2M), second step."""
    path = VP()
    denoiser, after = mixture_2d(path), []
    ts = torch.tensor([0.8, 0.6, 0.5], dtype=torch.float64)
    out = sde_dpm_solver_pp_2m(
        denoiser, x, ts, generator=generator(), callback=lambda i, s, x: after.append(x)
    )
    g = generator()
    _, z = (torch.empty_like(x).normal_(generator=g) for _ in range(2))
    h_previous, h = path.log_snr_half(ts).diff()
    m_1, m_0 = (denoiser.data(v, t.expand(6)) for v, t in zip([x, after[0]], ts[:2], strict=True))
    d_1 = (m_0 - m_1) * h / h_previous
    (_, sigma_t, sigma_s), alpha_s = path.sigma(ts), path.alpha(ts[2])
    expected = (
        sigma_s / sigma_t * torch.exp(-h) * after[0]
        - alpha_s * torch.expm1(-2 * h) * (m_0 + d_1 / 2)
        + sigma_s * torch.sqrt(-torch.expm1(-2 * h)) * z
    )
    torch.testing.assert_close(out, expected)


def test_extrapolation_pays_in_the_stochastic_solver_too():
    """N(0, 1/4) data, 12 steps: the standard deviation, exact by the recursion of variances."""
    one = torch.ones(1, 1, dtype=torch.float64)
    denoiser = GaussianMixture(0 * one, 0.25 * one[None], one[0], VP())
    ts = torch.linspace(1, 0.05, 13, dtype=torch.float64)
    truth = torch.sqrt(0.25 * VP().alpha(ts[-1]) ** 2 + VP().sigma(ts[-1]) ** 2)
    error = {
        name: (sample(denoiser, (200_000, 1), solver=name, ts=ts).std() - truth).abs()
        for name in ("ancestral", "sde_dpm_solver_pp_2m")
    }
    assert error["sde_dpm_solver_pp_2m"] < 0.5 * error["ancestral"]


def test_langevin_step_has_the_stated_signal_to_noise_ratio(x):
    score = torch.tensor([3.0, -4.0], dtype=torch.float64).expand(6, 2)  # norm 5
    z = torch.empty_like(x).normal_(generator=generator())
    step = 2 * (0.16 * z.norm(dim=1).mean() / 5) ** 2
    expected = x + step * score + torch.sqrt(2 * step) * z
    torch.testing.assert_close(_langevin_step(x, score, 0.16, generator()), expected)


def test_predictor_corrector_is_its_parts(x):
    denoiser = mixture_2d(VP())
    ts = torch.tensor([0.6, 0.5], dtype=torch.float64)
    for part in (ancestral, ddim, euler_maruyama):
        g = generator()
        expected = part(denoiser, x, ts, generator=g)
        for _ in range(2):
            score = denoiser.score(expected, ts[1:].expand(6))
            expected = _langevin_step(expected, score, 0.1, g)
        out = predictor_corrector(
            denoiser, x, ts, predictor=part.__name__, corrections=2, snr=0.1, generator=generator()
        )
        torch.testing.assert_close(out, expected)
    none = predictor_corrector(denoiser, x, ts, corrections=0, generator=generator())
    torch.testing.assert_close(none, ancestral(denoiser, x, ts, generator=generator()))


def test_corrections_mend_a_coarse_predictor():
    """N(0, 1/4) data from DDPM in 12 steps is too narrow; Langevin steps widen it again."""
    one = torch.ones(1, 1, dtype=torch.float64)
    denoiser = GaussianMixture(0 * one, 0.25 * one[None], one[0], VP())
    ts = torch.linspace(1, 0.2, 13, dtype=torch.float64)
    truth = torch.sqrt(0.25 * VP().alpha(ts[-1]) ** 2 + VP().sigma(ts[-1]) ** 2)
    error = [
        (
            sample(denoiser, (50_000, 1), solver="predictor_corrector", ts=ts, **o).std() - truth
        ).abs()
        for o in ({"corrections": 0}, {"corrections": 8, "snr": 0.2})
    ]
    assert error[1] < 0.5 * error[0]


STOCHASTIC = [
    ancestral,
    euler_maruyama,
    partial(euler_maruyama, eta=0.5),
    partial(ddim, eta=0.7),
    sde_dpm_solver_pp_2m,
    predictor_corrector,
]


def _name(solver):
    """A name without an address, so that every process collects the same tests."""
    return (
        f"{solver.func.__name__}-{solver.keywords}" if hasattr(solver, "func") else solver.__name__
    )


@pytest.mark.parametrize("solver", STOCHASTIC, ids=_name)
@pytest.mark.parametrize("path", [VP(), Linear()], ids=["VP", "Linear"])
def test_samples_have_the_moments_and_the_law_of_the_mixture(solver, path):
    """Moments within 4 standard errors and the bias of 100 steps, 0.02; MMD below its noise."""
    n, mixture = 2000, mixture_2d(path)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64)
    with torch.no_grad():
        x = solver(mixture, x, uniform_grid(path, 100), generator=g)
    weights, means = mixture._log_weights.exp(), mixture.means
    covs = mixture._axes * mixture._variances[:, None] @ mixture._axes.mT
    second = (weights[:, None, None] * (covs + means[:, :, None] * means[:, None])).sum(0)
    for values, truth in ((x, weights @ means), (x[:, :, None] * x[:, None], second)):
        error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - truth).abs() < 4 * error + 0.02).all()
    # Two samples of one law: the squared MMD (kernel at most 1) has a deviation of at most 2 / n.
    assert mmd(x, mixture.sample(n, generator=g), bandwidth=0.5) < 6 / n


def test_the_distribution_does_not_depend_on_the_noise_level():
    """Many steps: every eta gives the same standard deviation. A wrong drift would not."""
    one = torch.ones(1, 1, dtype=torch.float64)
    denoiser = GaussianMixture(0 * one, 0.25 * one[None], one[0], VP())
    for eta in (0.0, 0.5, 1.0, 1.5):
        x = sample(denoiser, (10_000, 1), solver="euler_maruyama", steps=200, eta=eta)
        assert x.std() == pytest.approx(0.5, abs=0.02), eta


def test_stochastic_options_are_checked(x):
    denoiser, ts = mixture_2d(VP()), torch.tensor([0.6, 0.5])
    with pytest.raises(ValueError, match="eta must be at least 0"):
        euler_maruyama(denoiser, x, ts, eta=-1.0)
    for bad in ({"predictor": "heun"}, {"corrections": -1}, {"snr": 0.0}):
        with pytest.raises(ValueError, match="predictor must be one of ancestral, ddim, euler_mar"):
            predictor_corrector(denoiser, x, ts, **bad)


def test_ode_and_sde_share_their_mean_prediction():
    """For a point mass both end in the point exactly."""
    one = torch.ones(1, 1, dtype=torch.float64)
    denoiser = GaussianMixture(2 * one, 1e-12 * one[None], one[0], VP())
    for name in ("ancestral", "sde_dpm_solver_pp_2m", "euler_maruyama", "predictor_corrector"):
        torch.testing.assert_close(
            sample(denoiser, (5, 1), solver=name, steps=30), 2 * one.expand(5, 1), atol=1e-5, rtol=0
        )
    assert dpm_solver_pp_2m(denoiser, one, torch.tensor([1.0, 0.0])).item() == pytest.approx(2)
