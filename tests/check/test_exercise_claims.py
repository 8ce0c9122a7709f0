"""What the pages and solutions of the exercises claim in words or numbers, measured."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from exact import mixture_2d

from course_lib.check import checker, ddpm, grading, guidance
from course_lib.denoisers import Denoiser, GaussianMixture
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.paths import CosineVP, Linear, cosine_betas, linear_betas
from course_lib.samplers import ddim, euler, rk4

PAGE = Path(__file__).resolve().parents[2] / "book" / "exercises.md"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("after ten seconds", checker.SECONDS / 10),
        (f"may take {grading.SECONDS:g} seconds (`--timeout`)", 1),
        (f"{grading.GIGABYTES:g} GB of memory", 1),
        ("more than a quarter of the time", grading.CELL / 4),
    ],
)
def test_limits_on_the_page_are_those_of_the_code(words, value):
    assert words in re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))
    assert value == 1


def spread(betas, std=0.25):
    values = ddpm._spread(betas, std, lambda b, tilde, n: (b * (n > 1), tilde))
    return values["beta"], values["beta_tilde"]


def test_beta_tilde_is_too_narrow_beta_a_little_too_wide_and_many_steps_settle_it():
    """Exercise variance_experiment."""
    large, small = spread(cosine_betas(20))
    assert small < 0.25 < large
    assert large - 0.25 < 0.25 - small
    for schedule in (cosine_betas, linear_betas):
        assert spread(schedule(1000)) == pytest.approx((0.25, 0.25), rel=0.02)


def test_inverting_and_coming_back_err_less_with_more_steps():
    """Exercise ddim_invert: up and down are no exact inverses, and the difference shrinks."""
    path = CosineVP()
    exact, errors = mixture_2d(path), []
    x = exact.sample(50, torch.full((50,), 0.02).double(), torch.Generator().manual_seed(0))
    for steps in (10, 20, 40, 80):
        ts = torch.linspace(0.02, 0.95, steps + 1, dtype=torch.float64)

        def predict(y, i, ts=ts):
            return exact.noise(y, ts[i].expand(len(y)))

        right = ddpm._invert(ddpm._ddim_up)
        up = right(predict, x, path.alpha(ts), path.sigma(ts))
        errors.append((ddim(exact, up, ts.flip(0)) - x).norm(dim=1).mean().item())
    assert errors[0] > 0.01
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))


def test_the_flow_of_a_gaussian_keeps_each_particle_at_its_quantile():
    """Exercise marginal_velocity: x_t = (1-t) m + sqrt(Var x_t) z, with the same z all along."""
    mean, std = 1.2, 0.4
    one = torch.ones(1, 1, dtype=torch.float64)
    exact = GaussianMixture(mean * one, std**2 * one[None], one[0], Linear())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    ts = torch.linspace(1, 0.3, 101, dtype=torch.float64)
    t = ts[-1]
    place = (1 - t) * mean + ((1 - t) ** 2 * std**2 + t**2).sqrt() * z
    torch.testing.assert_close(rk4(exact, z, ts), place, atol=1e-7, rtol=0)


def test_rk4_is_simpsons_rule_where_the_velocity_does_not_depend_on_x():
    """Exercise rk4_step: and so exact for cubics in t."""
    from course_lib.check import solvers

    x = torch.zeros(1, 1, dtype=torch.float64)
    t, s = torch.tensor([0.9, 0.2], dtype=torch.float64)

    def cubic(x, t):
        return (4 * t**3 - 3 * t**2 + 2 * t - 1)[:, None]

    end = solvers._stages()(cubic, x, t, s)

    def primitive(t):
        return t**4 - t**3 + t**2 - t

    torch.testing.assert_close(end[0, 0], primitive(s) - primitive(t))


class TwoNormals(Denoiser):
    """Label 0: data N(0, a). Label 1, which means none: data N(0, v)."""

    def __init__(self, a, v, path):
        super().__init__()
        one = torch.ones(1, 1, dtype=torch.float64)
        self.path, self.predicts = path, "data"
        self.each = [GaussianMixture(0 * one, c * one[None], one[0], path) for c in (a, v)]

    def predict(self, xt, t, cond=None):
        with_label, without = (one.data(xt, t) for one in self.each)
        return torch.where(cond[:, None] == 0, with_label, without)

    def null_condition(self, cond):
        return torch.ones_like(cond)


def test_guidance_of_normal_data_is_narrower_than_the_tilted_density():
    """Exercise guided_variance: 0.0625 and 0.4 for a = 1, v = 4, s = 3."""
    guided = ClassifierFreeGuidance(TwoNormals(1.0, 4.0, Linear()), 3.0)
    one_std = torch.ones(1, 1, dtype=torch.float64)  # the means are 0, and the flow is linear
    ts = torch.linspace(1, 0, 201, dtype=torch.float64)
    std = rk4(guided, one_std, ts, cond=torch.zeros(1, dtype=torch.int64)).item()
    assert std**2 == pytest.approx(0.0625, abs=1e-6)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-3 * x**2 / 2 + 2 * x**2 / 8).exp()
    assert (density * x**2).sum() / density.sum() == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(("gap", "guided", "tilted"), [(1.0, 1.7, 1.06), (2.0, 2.7, 2.0)])
def test_guidance_leads_beyond_the_class_and_tilting_does_not(gap, guided, tilted):
    """Exercise overshoot_experiment, scale 4, with the guidance and the mixture of the course."""
    means = torch.tensor([[gap], [-gap]], dtype=torch.float64)
    covs, weights = torch.full((2, 1, 1), 0.25).double(), torch.ones(2).double()
    exact = GaussianMixture(means, covs, weights, Linear(), torch.tensor([0, 1]))
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    noise = torch.special.ndtri(u)[:, None]
    ts, label = torch.linspace(1, 0, 21, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    samples = euler(ClassifierFreeGuidance(exact, 4.0), noise, ts, cond=label)
    assert samples.mean().item() == pytest.approx(guided, abs=0.05)
    right = guidance._mean(*guidance._classes(gap), 4)
    assert samples.mean().item() == pytest.approx(right, abs=1e-9)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    label = torch.zeros(len(x), dtype=torch.int64)
    density = (4 * exact.log_prob(x, cond=label) - 3 * exact.log_prob(x)).softmax(0)
    assert (density @ x).item() == pytest.approx(tilted, abs=0.005)
