"""What the pages and solutions of the exercises claim in words or numbers, measured."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from exact import mixture_2d

from course_lib.check import checker, ddpm, grading, guidance, score_flows
from course_lib.denoisers import Denoiser, GaussianMixture
from course_lib.flows.activations import ACTIVATIONS
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.paths import VE, CosineVP, Linear, cosine_betas, linear_betas
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


def test_newtons_method_leaps_from_one_flat_end_to_the_other_and_back():
    """Exercise newton_inverse: staying inside of the bracket is not enough."""
    x, visited = torch.tensor(29.0).double(), []
    for _ in range(1000):
        value, slope = 0.05 * x + 0.95 * (4 * x).tanh(), 0.05 + 3.8 * (1 - (4 * x).tanh() ** 2)
        x = x - (value - 0.5) / slope
        visited.append(x.item())
    assert visited == pytest.approx([-9, 29] * 500)


def test_the_leash_reaches_every_solution_from_a_wide_bracket():
    """Exercise newton_inverse: for the activations of the course too, in double and single."""
    right = score_flows._solve()
    x = torch.cat([torch.logspace(-6, 4, 60), -torch.logspace(-6, 4, 60), torch.zeros(1)]).double()
    for activation in ACTIVATIONS.values():
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
            y = activation(x.to(dtype))
            ends = torch.full_like(y, 1e5)
            found = right(activation, activation.slope, y, -ends, ends, 40)
            torch.testing.assert_close(activation(found), y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gap", [1.0, 2.0])
def test_the_likelihood_is_score_matching_summed_over_all_levels(gap):
    """Exercise objectives_experiment, with the mixture and the scores of the course."""
    path = VE(0.1, 100.0)
    means = torch.tensor([[gap], [-gap]]).double()
    covs = torch.full((2, 1, 1), 0.25).double()
    models = [GaussianMixture(means, covs, torch.tensor([s, 1 - s]).double(), path)
              for s in (0.8, 0.5)]  # fmt: skip
    likelihood, matching = [], []
    for time in torch.linspace(0, 1, 61).double():  # log sigma is linear in time
        width = 8 * (1 + path.sigma(time[None])).item() + gap
        x = torch.linspace(-width, width, 4001, dtype=torch.float64)[:, None]
        t = time.expand(len(x))
        p, q = (model.log_prob(x, t) for model in models)
        a, b = (model.score(x, t)[:, 0] for model in models)
        density = p.exp() * 2 * width / 4000
        likelihood.append((density @ (p - q)).item())
        matching.append((path.sigma(time[None]) ** 2 * (density @ (a - b) ** 2)).item())
    total = torch.trapezoid(torch.tensor(matching), dx=math.log(1000) / 60).item()
    assert likelihood[0] - likelihood[-1] == pytest.approx(total, rel=1e-3)
    assert likelihood[0] > 10 * matching[0]  # at low noise score matching is nearly blind


def test_an_integral_does_not_find_a_density_of_the_wrong_direction():
    """Exercise sample_log_density: x = sinh(z), whose noise is asinh(x)."""
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    noise = torch.distributions.Normal(0.0, 1.0)
    wrong = noise.log_prob(x.sinh()) + x.cosh().log()
    assert torch.trapezoid(wrong.exp(), x).item() == pytest.approx(1, abs=1e-6)
    z = torch.special.ndtri((torch.arange(1000).double() + 0.5) / 1000)
    right = noise.log_prob(z) - z.cosh().log()
    own = z.sinh()
    assert -right.mean() < 2
    assert -(noise.log_prob(own.sinh()) + own.cosh().log()).mean() > 100


def test_enable_grad_is_not_enough_under_inference_mode():
    """Exercise flow_score."""
    solution = score_flows._scored()
    with torch.inference_mode(), pytest.raises(RuntimeError):
        solution(lambda x, s: -(x**2).sum(1), lambda score, x: score(x, x[:, 0]), torch.ones(2, 2))
