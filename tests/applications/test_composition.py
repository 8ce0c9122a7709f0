"""Products, mixtures and negations against Gaussian mixtures whose answers are known."""

import math

import pytest
import torch
from exact import PATHS, class_mixture, mixture_2d

from course_lib import (
    VE,
    VP,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    GaussianMixture,
    Linear,
    NetDenoiser,
    nets,
    sample,
)
from course_lib.applications.composition import (
    Asked,
    MixtureOfExperts,
    ProductOfExperts,
    all_of,
    exact_product,
    has_density,
)
from course_lib.applications.mcmc import annealed_langevin, langevin, line_integral
from course_lib.applications.particles import (
    effective_sample_size,
    feynman_kac,
    systematic_resampling,
)
from course_lib.flows import RealNVP, ScoreFlowNetwork
from course_lib.samplers import uniform_grid

FACES = ("noise", "data", "v", "velocity", "score")


def gaussian(mean, variance, path=VP()):  # noqa: B008
    mean = torch.as_tensor(mean, dtype=torch.float64).reshape(1, -1)
    cov = variance * torch.eye(mean.shape[1], dtype=torch.float64)[None]
    return GaussianMixture(mean, cov, torch.ones(1, dtype=torch.float64), path)


def line(means, variances, weights, path=VP()):  # noqa: B008
    values = (torch.tensor(v, dtype=torch.float64) for v in (means, variances, weights))
    m, v, w = values
    return GaussianMixture(m[:, None], v[:, None, None], w, path)


def points(n=50, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def at(level, x):
    return torch.full((len(x),), level, dtype=x.dtype)


def net_denoiser():
    torch.manual_seed(0)
    net = nets.MLP(2, width=8).double()
    torch.nn.init.normal_(net.out.weight)
    return NetDenoiser(net, VP())


class Rotation(Denoiser):
    """A score that is no gradient: -x, and a turn with rate 1."""

    predicts = "score"
    path = VP()

    def predict(self, xt, t, cond=None):
        return torch.stack([-xt[:, 0] - xt[:, 1], -xt[:, 1] + xt[:, 0]], 1)


# --- The exact product --------------------------------------------------------------------------


def test_the_exact_product_of_mixtures_is_the_product_of_the_densities_up_to_a_constant():
    one = mixture_2d(VP())
    covs = torch.tensor([[0.4, 0.1], [0.1, 0.3]]).double().expand(3, 2, 2)
    shares = torch.tensor([0.2, 0.2, 0.6]).double()
    two = GaussianMixture(one.means.flip(0) + 0.3, covs, shares, VP())
    three = gaussian([0.5, -0.5], 3.0)
    product = exact_product([one, two, three], [1, 1, -0.25])
    assert product.means.shape == (9, 2)
    x = points()
    given = one.log_prob(x) + two.log_prob(x) - 0.25 * three.log_prob(x)
    gap = product.log_prob(x) - given
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))


def test_the_exact_product_is_normalised_with_the_right_weights():
    product = exact_product(
        [line([-1, 2], [0.3, 0.5], [0.7, 0.3]), line([0, 1], [1, 0.2], [0.4, 0.6])]
    )
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
    assert torch.trapezoid(product.log_prob(x).exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_powers_and_negations_of_gaussians_have_a_closed_form():
    """Precisions 2/1 - 1/4 = 7/4; mean (2 * 1 - 1/4 * (-2)) / (7/4) = 10/7."""
    product = exact_product([gaussian(1.0, 1.0), gaussian(-2.0, 4.0)], [2, -1])
    assert product._variances.item() == pytest.approx(4 / 7, rel=1e-12)
    assert product.means.item() == pytest.approx(10 / 7, rel=1e-12)


def test_a_product_that_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match=r"smallest precision is -0\.5.*smaller negative weight"):
        exact_product([gaussian(0.0, 1.0), gaussian(1.0, 0.5)], [1, -0.75])
    with pytest.raises(ValueError, match="mixture's weight must be 1"):
        exact_product([mixture_2d(VP()), gaussian([0.0, 0.0], 1.0)], [2, 1])


def test_components_of_weight_zero_are_left_out():
    product = exact_product([line([-60, 0], [0.1, 0.1], [0.5, 0.5]), gaussian(0.0, 0.1)])
    assert len(product.means) == 1


# --- Products as denoisers ----------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, -0.5), (1.5, -0.5)])
def test_every_face_of_a_product_belongs_to_the_weighted_sum_of_scores(path, weights):
    experts = [mixture_2d(path), gaussian([0.3, 0.2], 0.5, path)]
    product, x = ProductOfExperts(experts, weights), points()
    t = at(0.4, x)
    score = sum(w * e.score(x, t) for w, e in zip(weights, experts, strict=True))
    for face in FACES:
        right = path.convert(score, x, t, "score", face)
        torch.testing.assert_close(getattr(product, face)(x, t), right)
    torch.testing.assert_close(product.predict(x, t), product.noise(x, t))


def test_the_score_of_a_product_is_the_gradient_of_its_log_prob():
    product = ProductOfExperts([mixture_2d(VP()), gaussian([0.0, 1.0], 0.4)], [1.0, -0.2])
    x = points().requires_grad_()
    t = at(0.3, x)
    (gradient,) = torch.autograd.grad(product.log_prob(x, t).sum(), x)
    torch.testing.assert_close(product.score(x.detach(), t), gradient)


def test_at_time_zero_a_product_has_the_score_of_the_exact_product_and_later_it_has_not():
    pair = [mixture_2d(VP()), gaussian([0.3, 0.2], 0.5)]
    product, exact, x = ProductOfExperts(pair), exact_product(pair), points()
    torch.testing.assert_close(product.score(x, at(0.0, x)), exact.score(x, at(0.0, x)))
    gap = (product.score(x, at(0.3, x)) - exact.score(x, at(0.3, x))).norm(dim=1).mean()
    assert gap > 0.5


def test_products_refuse_what_does_not_fit():
    one = gaussian(0.0, 1.0)
    for experts, weights in (([], None), ([one], [1, 2])):
        with pytest.raises(ValueError, match="at least one, with a weight each"):
            ProductOfExperts(experts, weights)
    with pytest.raises(ValueError, match="weights must be finite"):
        ProductOfExperts([one], [math.inf])
    with pytest.raises(ValueError, match=r"one path; got VP.*Linear"):
        ProductOfExperts([one, gaussian(0.0, 1.0, Linear())])
    with pytest.raises(TypeError, match="must be a Denoiser"):
        ProductOfExperts([nets.MLP(2)])
    with pytest.raises(TypeError, match="NetDenoiser knows its score but no density"):
        ProductOfExperts([net_denoiser(), net_denoiser()]).log_prob(points(), at(0.5, points()))


def test_a_density_is_not_mistaken():
    mixture, net = class_mixture(VP()), net_denoiser()
    guided = ClassifierGuidance(mixture, lambda x, t, c: mixture.log_class_prob(x, t)[:, 0], 1.0)
    flow = ScoreFlowNetwork(RealNVP(2, n_layers=2, cond_dim=8), VP())
    known = (mixture, flow, Asked(mixture, None), ProductOfExperts([mixture]))
    assert all(map(has_density, known))
    assert not any(map(has_density, (net, guided, Asked(net, None), ProductOfExperts([net]))))


# --- Mixtures of models -------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_mixture_of_two_mixtures_is_the_mixture_of_all_their_components(path):
    one, two = mixture_2d(path), gaussian([0.3, 0.2], 0.5, path)
    covs = [torch.einsum("kde,ke,kfe->kdf", m._axes, m._variances, m._axes) for m in (one, two)]
    shares = torch.cat([0.75 * one._log_weights.exp(), torch.tensor([0.25]).double()])
    both = GaussianMixture(torch.cat([one.means, two.means]), torch.cat(covs), shares, path)
    mixture, x = MixtureOfExperts([one, two], [3.0, 1.0]), points()
    t = at(0.4, x)
    for face in FACES:
        torch.testing.assert_close(getattr(mixture, face)(x, t), getattr(both, face)(x, t))
    torch.testing.assert_close(mixture.log_prob(x, t), both.log_prob(x, t))
    torch.testing.assert_close(mixture.responsibilities(x, t).sum(0), torch.ones(50).double())


def test_averaged_scores_are_not_the_score_of_the_mixture():
    """Equal unit Gaussians at -2 and 2: the average is -x, the score of one wide bump at 0."""
    experts = [gaussian(-2.0, 1.0), gaussian(2.0, 1.0)]
    x = torch.tensor([[2.0]]).double()
    right = MixtureOfExperts(experts).score(x, at(0.0, x)).item()
    averaged = ProductOfExperts(experts, [0.5, 0.5]).score(x, at(0.0, x)).item()
    assert averaged == pytest.approx(-2)
    assert right == pytest.approx(-4 / (1 + math.exp(8)), rel=1e-9)


def test_mixtures_refuse_what_has_no_density_and_weights_that_are_not_positive():
    with pytest.raises(TypeError, match="NetDenoiser knows its score but no density"):
        MixtureOfExperts([gaussian([0.0, 0.0], 1.0), net_denoiser()])
    product = ProductOfExperts([gaussian(0.0, 1.0)] * 2)
    with pytest.raises(TypeError, match="up to a factor only"):
        MixtureOfExperts([gaussian(0.0, 1.0), product])
    with pytest.raises(ValueError, match="weights must be positive"):
        MixtureOfExperts([gaussian(0.0, 1.0)] * 2, [1.0, 0.0])


# --- Conditions ---------------------------------------------------------------------------------


def test_all_of_one_condition_is_classifier_free_guidance():
    mixture, x = class_mixture(VP()), points()
    t, cond = at(0.3, x), torch.ones(50, dtype=torch.int64)
    guided = ClassifierFreeGuidance(mixture, 2.5).score(x, t, cond)
    product = all_of(mixture, [cond[:1]], [2.5])
    torch.testing.assert_close(product.score(x, t), guided)
    assert product.weights == (-1.5, 2.5)


def test_all_of_two_conditions_is_bayes_rule_when_they_are_independent_given_x():
    """grad log p(x) p(a | x) p(b | x), with the exact classifiers of noisy points."""
    mixture = class_mixture(VP())
    x = points().requires_grad_()
    t = at(0.3, x)
    log_class = mixture.log_class_prob(x, t)
    log_joint = mixture.log_prob(x, t) + log_class[:, 0] + log_class[:, 1]
    (right,) = torch.autograd.grad(log_joint.sum(), x)
    product = all_of(mixture, [torch.tensor([0]), torch.tensor([1])])
    torch.testing.assert_close(product.score(x.detach(), t), right)
    assert product.has_density


def test_all_of_with_weights_that_sum_to_one_leaves_the_unconditional_model_out():
    product = all_of(class_mixture(VP()), [torch.tensor([0]), torch.tensor([1])], [1.5, -0.5])
    assert product.weights == (1.5, -0.5)
    with pytest.raises(ValueError, match="conds must be at least one"):
        all_of(class_mixture(VP()), [])


def test_an_asked_model_answers_for_its_own_condition():
    mixture, x = class_mixture(VP()), points()
    t, one = at(0.3, x), torch.full((50,), 1)
    asked = Asked(mixture, torch.tensor([1]))
    for face in FACES:
        right = getattr(mixture, face)(x, t, one)
        torch.testing.assert_close(getattr(asked, face)(x, t, one - 1), right)
    torch.testing.assert_close(asked.predict(x, t), mixture.predict(x, t, one))
    torch.testing.assert_close(asked.log_prob(x, t), mixture.log_prob(x, t, one))


def test_conditions_that_are_encoded_are_encoded_once_and_given_to_every_sample():
    class Words(Denoiser):
        predicts, path, asked = "noise", VP(), 0

        def encode_condition(self, cond):
            Words.asked += isinstance(cond, str)
            return (torch.ones(1, 3), torch.ones(1, 2).bool()) if isinstance(cond, str) else cond

        def null_condition(self, cond):
            return tuple(0 * part for part in cond)

        def predict(self, xt, t, cond=None):
            assert [len(part) for part in cond] == [len(xt)] * 2
            return xt * cond[0].mean()

    product, x = all_of(Words(), ["a seven"], [3.0]), torch.randn(5, 2)
    torch.testing.assert_close(product.noise(x, at(0.5, x)), 3 * x)
    assert Words.asked == 1
    shared = ProductOfExperts([Words()])
    assert shared.encode_condition("bold")[0].shape == (1, 3)
    assert shared.null_condition((torch.ones(1),)) == (torch.zeros(1),)


# --- Langevin -----------------------------------------------------------------------------------


def test_two_standard_normals_and_the_four_variances():
    """Sum of scores -2x: ODE exp(-B) -> 0, reverse SDE 1/3, the product and Langevin 1/2."""
    product, shape = ProductOfExperts([gaussian(0.0, 1.0)] * 2), (6000, 1)
    assert exact_product(product.experts)._variances.item() == pytest.approx(0.5)
    assert sample(product, shape, solver="heun", steps=50).var().item() < 1e-3
    sde = sample(product, shape, solver="euler_maruyama", steps=100).var().item()
    assert sde == pytest.approx(1 / 3, abs=0.03)
    options = {"metropolis": "density", "data_std": 1.0, "step": 0.2, "corrections": 3}
    mala = sample(product, shape, solver=annealed_langevin, steps=30, **options).var().item()
    assert mala == pytest.approx(0.5, abs=0.035)
    grid = uniform_grid(VP(), 100)
    weighted = sample(product, shape, solver=feynman_kac, ts=grid).var().item()
    assert weighted == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0])
def test_the_bias_of_unadjusted_langevin_is_the_closed_form_and_metropolis_has_none(step):
    """N(0, v): the variance is v / (1 - h / 2v)."""
    v, generator = 0.7, torch.Generator().manual_seed(0)
    target, x = gaussian(0.0, v), points(40000, 1) * v**0.5
    t = at(0.0, x)
    ula, rate = langevin(target, x, t, step=step, steps=15, generator=generator)
    assert rate == 1
    assert ula.var().item() == pytest.approx(v / (1 - step / (2 * v)), rel=0.03)
    mala, rate = langevin(
        target, x, t, step=step, steps=15, metropolis="density", generator=generator
    )
    assert mala.var().item() == pytest.approx(v, rel=0.03)
    assert 0.3 < rate < 1


def test_metropolis_leaves_a_mixture_as_it_is_and_brings_others_there():
    mixture = line([-1.0, 1.2], [0.2, 0.4], [0.3, 0.7])
    generator = torch.Generator().manual_seed(1)
    options = {"step": 0.15, "metropolis": "density", "generator": generator}
    x = mixture.sample(20000, generator=generator)
    after, _ = langevin(mixture, x, at(0.0, x), steps=20, **options)
    assert (after < 0).double().mean().item() == pytest.approx(
        (x < 0).double().mean().item(), abs=0.015
    )
    x = 0 * x[:6000] + 3
    after, _ = langevin(mixture, x, at(0.0, x), steps=250, **options)
    exact_share = mixture.sample(200000, generator=generator).lt(0).double().mean()
    assert after.lt(0).double().mean().item() == pytest.approx(exact_share.item(), abs=0.03)


def test_the_line_integral_decides_like_the_density_where_the_score_is_linear():
    target, x = gaussian([0.3, -0.2], 0.6), points()
    moves = [
        langevin(target, x, at(0.2, x), step=0.5, steps=5, metropolis=how,
                 generator=torch.Generator().manual_seed(3))
        for how in ("density", "line")
    ]  # fmt: skip
    torch.testing.assert_close(moves[0][0], moves[1][0])
    assert moves[0][1] == moves[1][1] < 1


def test_no_step_changes_nothing():
    x = points()
    after, rate = langevin(gaussian([0.0, 0.0], 1.0), x, at(0.5, x), step=0.1, steps=0)
    assert torch.equal(after, x)
    assert rate == 0


@pytest.mark.parametrize("predictor", ["none", "ddim", "ancestral"])
def test_annealed_langevin_finds_the_weights_of_the_modes(predictor):
    pair = [line([-2, 2], [0.3, 0.3], [0.5, 0.5]), gaussian(0.7, 4.0)]
    exact = exact_product(pair)
    seen = []
    x = sample(
        ProductOfExperts(pair), (1000, 1), solver=annealed_langevin, data_std=0.5,
        step=0.3, corrections=10, predictor=predictor, ts=uniform_grid(VP(), 30),
    )  # fmt: skip
    share = exact._log_weights.exp()[exact.means[:, 0] > 0].sum().item()
    assert (x > 0).double().mean().item() == pytest.approx(share, abs=0.06)
    annealed_langevin(
        ProductOfExperts(pair), x, torch.tensor([0.2, 0.1, 0.0]), corrections=0,
        callback=lambda i, s, y: seen.append((i, round(s.item(), 3))),
    )  # fmt: skip
    assert seen == [(0, 0.1), (1, 0.0)]


def test_without_data_std_the_last_step_denoises():
    """There h = 0 at t = 0, and one step of DDIM to sigma = 0 returns the data prediction."""
    target, x = mixture_2d(VP()), points()
    ts = torch.tensor([0.1, 0.0]).double()
    after = annealed_langevin(target, x, ts, corrections=3)
    torch.testing.assert_close(after, target.data(x, at(0.1, x)))


def test_langevin_refuses_options_out_of_range():
    x, target = points(), gaussian([0.0, 0.0], 1.0)
    for options in ({"step": 0.0}, {"step": 0.1, "steps": -1}, {"step": 1.0, "metropolis": "yes"}):
        with pytest.raises(ValueError, match="step must be above 0"):
            langevin(target, x, at(0.5, x), **options)
    with pytest.raises(TypeError, match="no density"):
        langevin(net_denoiser(), x, at(0.5, x), step=0.1, metropolis="density")
    for options in ({"predictor": "euler"}, {"data_std": -1.0}):
        with pytest.raises(ValueError, match="predictor must be one of"):
            annealed_langevin(target, x, uniform_grid(VP(), 2), **options)


# --- Particles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP(), VE(0.01, 10.0), Linear()], ids=["VP", "VE", "Linear"])
def test_weighted_particles_find_a_product_on_every_path(path):
    pair = [line([-2, 2], [0.3, 0.3], [0.5, 0.5], path), gaussian(1.0, 2.0, path)]
    exact, record = exact_product(pair), []
    share = exact._log_weights.exp()[exact.means[:, 0] > 0].sum().item()
    options = {"ts": uniform_grid(path, 150, t_max=0.98), "record": record, "seed": 2}
    x = sample(ProductOfExperts(pair), (4000, 1), solver=feynman_kac, **options)
    right = exact.sample(100000, generator=torch.Generator().manual_seed(0))
    assert share > 0.8
    assert (x > 0).double().mean().item() == pytest.approx(share, abs=0.07)
    assert x.mean().item() == pytest.approx(right.mean().item(), abs=0.25)
    assert x[x > 0].var().item() == pytest.approx(right[right > 0].var().item(), rel=0.15)
    assert len(record) == 150
    assert 0 < min(record) <= max(record) <= 1


@pytest.mark.parametrize("weights", [(2.0, -1.0), (0.5, 0.5), (1.5, -0.5), (2.0, 0.5)])
def test_the_weights_are_right_for_any_powers_of_the_experts(weights):
    """Powers, geometric averages, guidance: mean and variance of the exact product."""
    pair = [gaussian(0.6, 0.5), gaussian(-0.3, 1.5)]
    exact = exact_product(pair, weights)
    x = sample(
        ProductOfExperts(pair, weights), (8000, 1), solver=feynman_kac, steps=150,
        ts=uniform_grid(VP(), 150),
    )  # fmt: skip
    assert x.mean().item() == pytest.approx(exact.means.item(), abs=0.06)
    assert x.var().item() == pytest.approx(exact._variances.item(), rel=0.1)


def test_the_threshold_says_how_often_particles_are_resampled():
    product, ts = ProductOfExperts([gaussian(0.0, 1.0)] * 2), uniform_grid(VP(), 100)
    x = points(400, 1)
    records = {}
    for threshold in (0.0, 0.5, 1.0):
        generator, records[threshold] = torch.Generator().manual_seed(0), []
        feynman_kac(product, x, ts, threshold=threshold, generator=generator,
                    record=records[threshold])  # fmt: skip
    assert records[0.0][-1] < 0.5 < min(records[1.0])
    assert min(records[1.0]) > min(records[0.5]) > records[0.0][-1]


def test_the_callback_sees_every_step_and_weights_that_sum_to_one_change_no_start():
    seen, product, x = [], ProductOfExperts([gaussian(0.0, 1.0)]), points(100, 1)
    ts = torch.tensor([1.0, 0.999999]).double()
    after = feynman_kac(product, x, ts, callback=lambda i, s, y: seen.append(i))
    assert seen == [0]
    assert after.std().item() == pytest.approx(x.std().item(), rel=0.1)


def test_systematic_resampling_takes_each_particle_its_share_rounded_up_or_down():
    log_weights = points(200, 1)[:, 0]
    expected = 200 * log_weights.softmax(0)
    generator, total, rounds = torch.Generator().manual_seed(0), torch.zeros(200).double(), 400
    for _ in range(rounds):
        counts = systematic_resampling(log_weights, generator).bincount(minlength=200)
        assert bool((counts >= expected.floor()).all() and (counts <= expected.ceil()).all())
        total += counts / rounds
    assert (total - expected).abs().max().item() < 4 * 0.5 / rounds**0.5


def test_the_effective_sample_size_has_its_two_extremes():
    assert effective_sample_size(torch.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, -1e3, -1e3])) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([0.0, math.log(3)])) == pytest.approx(1.6)


def test_particles_refuse_what_does_not_fit():
    product, x, ts = (
        ProductOfExperts([gaussian(0.0, 1.0)] * 2),
        points(10, 1),
        uniform_grid(VP(), 2),
    )
    with pytest.raises(TypeError, match="product must be a ProductOfExperts"):
        feynman_kac(gaussian(0.0, 1.0), x, ts)
    with pytest.raises(ValueError, match="threshold must lie in"):
        feynman_kac(product, x, ts, threshold=2)
    with pytest.raises(ValueError, match="sum to more than 0"):
        feynman_kac(ProductOfExperts([gaussian(0.0, 1.0)] * 2, [1, -1]), x, ts)
    straight = ProductOfExperts([gaussian(0.0, 1.0, Linear())] * 2)
    with pytest.raises(ValueError, match="alpha = 0"):
        feynman_kac(straight, x, uniform_grid(Linear(), 4))


# --- Line integrals -----------------------------------------------------------------------------


def test_the_line_integral_of_a_gradient_is_the_difference_of_log_densities():
    mixture, corners = mixture_2d(VP()), points(4)
    t = at(0.3, corners)
    right = (mixture.log_prob(corners, t)[-1] - mixture.log_prob(corners, t)[0]).item()
    assert line_integral(mixture, corners, 0.3, points=40) == pytest.approx(right, abs=1e-6)
    closed = torch.cat([corners, corners[:1]])
    assert line_integral(mixture, closed, 0.3, points=40) == pytest.approx(0, abs=1e-6)


def test_round_a_square_a_turning_field_gives_twice_the_area():
    square = torch.tensor([[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]).double()
    assert line_integral(Rotation(), square, 0.5, points=3) == pytest.approx(8)
    with pytest.raises(ValueError, match="at least two points"):
        line_integral(Rotation(), square[:1], 0.5)
