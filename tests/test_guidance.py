"""Guidance on mixtures with exact class-conditional densities; networks for what they see."""

import math

import pytest
import torch
from exact import class_mixture
from torch import nn

from course_lib import VE, VP, CosineVP, Denoiser, GaussianMixture, Linear, NetDenoiser
from course_lib.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    NegativePrompt,
    cosine_schedule,
    linear_schedule,
)
from course_lib.nets import DiT
from course_lib.samplers import (
    SOLVERS,
    angle_grid,
    lambda_grid,
    log_likelihood,
    sample,
    uniform_grid,
)

FACES = ["noise", "data", "v", "velocity", "score"]


class Spy(Denoiser):
    """The same denoiser; keeps what it was asked, and adds a constant to the prediction."""

    def __init__(self, denoiser, constant=0.0):
        super().__init__()
        self.denoiser, self.path, self.predicts = denoiser, denoiser.path, denoiser.predicts
        self.constant, self.asked = constant, []

    def predict(self, xt, t, cond=None):
        self.asked.append((xt, t, cond))
        return self.denoiser.predict(xt, t, cond) + self.constant

    def null_condition(self, cond):
        return self.denoiser.null_condition(cond)

    @property
    def rows(self):
        return [len(xt) for xt, *_ in self.asked]


def normals(path, means, std=1.0):
    """One normal for each class: of one covariance, so guided fields are normals' as well."""
    means = torch.tensor(means, dtype=torch.float64)[:, None]
    covs = std**2 * torch.ones(len(means), 1, 1, dtype=torch.float64)
    weights = torch.ones(len(means), dtype=torch.float64)
    return GaussianMixture(means, covs, weights, path, torch.arange(len(means)))


def inputs(mixture, n=24, low=0.05, high=0.95):
    t = torch.linspace(low, high, n, dtype=torch.float64)
    xt = mixture.sample(n, t, torch.Generator().manual_seed(0))
    return xt, t, torch.arange(n) % 3


def full(n, time):
    return torch.full((n,), time, dtype=torch.float64)


def log_prob_of(mixture):
    return lambda xt, t, cond: mixture.log_class_prob(xt, t)[torch.arange(len(xt)), cond]


RULES = {
    "cfg": lambda d, s: ClassifierFreeGuidance(d, s),
    "negative": lambda d, s: NegativePrompt(d, torch.tensor([1]), s),
    "classifier": lambda d, s: ClassifierGuidance(d, lambda x, t, c: -(x**2).sum(1), s),
}


@pytest.mark.parametrize("face", FACES)
def test_guided_prediction_by_hand(path, face):
    mixture = class_mixture(path)
    xt, t, cond = inputs(mixture)
    null, negative = torch.full_like(cond, 3), torch.full_like(cond, 1)
    predict = getattr(mixture, face)
    with_cond, without, against = (predict(xt, t, c) for c in (cond, null, negative))
    guided = getattr(ClassifierFreeGuidance(mixture, 3.0), face)(xt, t, cond)
    torch.testing.assert_close(guided, without + 3 * (with_cond - without))
    guided = getattr(NegativePrompt(mixture, negative, 1.5), face)(xt, t, cond)
    torch.testing.assert_close(guided, 1.5 * with_cond - 0.5 * against)
    given = ClassifierFreeGuidance(mixture, 1.5, negative)
    torch.testing.assert_close(guided, getattr(given, face)(xt, t, cond))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.5, -1.0, linear_schedule(0.0, 4.0)])
@pytest.mark.parametrize("rule", RULES)
def test_what_both_branches_share_goes_through_unscaled(rule, scale):
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    plain = RULES[rule](mixture, scale).predict(xt, t, cond)
    shifted = RULES[rule](Spy(mixture, constant=2.0), scale).predict(xt, t, cond)
    torch.testing.assert_close(shifted, plain + 2)


@pytest.mark.parametrize("scale", [-3.0, 0.5, 7.5])
def test_equal_branches_give_that_branch_at_any_scale(scale):
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    guided = NegativePrompt(mixture, cond, scale)
    for face in FACES:
        expected = getattr(mixture, face)(xt, t, cond)
        torch.testing.assert_close(getattr(guided, face)(xt, t, cond), expected, rtol=0, atol=1e-12)
    shared = NegativePrompt(normals(VP(), [0.5, 0.5]), torch.tensor([1]), scale)
    x, cond = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(
        shared.data(x, full(4, 0.5), cond), shared.denoiser.data(x, full(4, 0.5), cond)
    )


@pytest.mark.parametrize("method", [*FACES, "predict"])
def test_scales_one_and_zero_are_one_branch_to_the_last_bit(method):
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    spy = Spy(mixture)
    for scale, branch in ((1, cond), (0, torch.full_like(cond, 3)), (1.0, cond)):
        spy.asked.clear()
        guided = getattr(ClassifierFreeGuidance(spy, scale), method)(xt, t, cond)
        assert spy.rows == [24]
        assert torch.equal(guided, getattr(spy, method)(xt, t, branch))


@pytest.mark.parametrize("method", [*FACES, "predict"])
def test_both_branches_are_one_call(method):
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    spy = Spy(mixture)
    getattr(ClassifierFreeGuidance(spy, 2.0), method)(xt, t, cond)
    assert spy.rows == [48]
    ((x, times, conditions),) = spy.asked
    assert torch.equal(x, torch.cat([xt, xt]))
    assert torch.equal(times, torch.cat([t, t]))
    assert torch.equal(conditions, torch.cat([cond, torch.full_like(cond, 3)]))


def test_a_time_that_all_share_stays_one_number():
    """Paths then work out their coefficients once, and in float64."""
    mixture = class_mixture(VP())
    xt, _, cond = inputs(mixture)
    spy = Spy(mixture)
    t = torch.tensor(0.4, dtype=torch.float64).expand(24)
    ClassifierFreeGuidance(spy, 2.0).noise(xt, t, cond)
    assert spy.asked[0][1].shape == (48,)
    assert spy.asked[0][1].stride() == (0,)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("rule", ["cfg", "negative", "classifier", "rescaled"])
def test_the_guided_field_does_not_depend_on_what_the_network_predicts(rule, face):
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    rules = RULES | {"rescaled": lambda d, s: ClassifierFreeGuidance(d, s, rescale=0.7)}

    class Exact(nn.Module):
        def __init__(self, predicts):
            super().__init__()
            self.answer = getattr(mixture, predicts)

        def forward(self, x, t, cond=None):
            return self.answer(x, t, cond)

        def null_condition(self, cond):
            return torch.full_like(cond, 3)

    expected = getattr(rules[rule](mixture, 2.5), face)(xt, t, cond)
    for predicts in FACES:
        guided = rules[rule](NetDenoiser(Exact(predicts), VP(), predicts), 2.5)
        assert guided.predicts == predicts
        got = getattr(guided, face)(xt, t, cond)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 2.5, cosine_schedule(0.0, 4.0)])
def test_the_exact_classifier_is_classifier_free_guidance(path, scale):
    """Bayes: grad log p(c | x_t) = score(x_t | c) - score(x_t)."""
    mixture = class_mixture(path)
    xt, t, cond = inputs(mixture)
    by_classifier = ClassifierGuidance(mixture, log_prob_of(mixture), scale)
    free = ClassifierFreeGuidance(mixture, scale)
    for face in FACES:
        expected = getattr(free, face)(xt, t, cond)
        got = getattr(by_classifier, face)(xt, t, cond)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
        with torch.no_grad():
            got = getattr(by_classifier, face)(xt, t, cond)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
        assert not got.requires_grad
    assert by_classifier.null_condition(cond).tolist() == [3] * 24


@pytest.mark.parametrize("path", [Linear(), CosineVP()], ids=["Linear", "CosineVP"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 3e-3)])
def test_the_classifier_has_its_limit_where_alpha_is_zero(path, dtype, tolerance):
    """There the data prediction moves from the mean of the data towards that of the class."""
    mixture = class_mixture(path)
    xt = mixture.sample(24, full(24, 1.0), torch.Generator().manual_seed(0)).to(dtype)
    t, cond = torch.linspace(0.9, 1, 24, dtype=dtype), torch.arange(24) % 3
    t[1::2] = 1.0
    by_classifier = ClassifierGuidance(mixture, log_prob_of(mixture), 2.0)
    for face in FACES:
        expected = getattr(ClassifierFreeGuidance(mixture, 2.0), face)(xt, t, cond)
        got = getattr(by_classifier, face)(xt, t, cond)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    whole = mixture._log_weights.exp() @ mixture.means
    log_probs = mixture.log_class_prob(mixture.means, full(len(mixture.means), 1.0))
    assert log_probs.isfinite().all()
    for c in range(3):
        keep = mixture.classes == c
        mean = mixture._log_weights[keep].softmax(0) @ mixture.means[keep]
        got = by_classifier.data(xt, t, cond)[(cond == c) & (t == 1)]
        expected = (whole + 2 * (mean - whole)).to(dtype).expand_as(got)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_gradients_flow_through_the_classifier_only_where_they_are_recorded():
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    guided = ClassifierGuidance(mixture, lambda x, t, c: -slope * (x**2).sum(1), 1.0)
    (gradient,) = torch.autograd.grad(guided.score(xt, t, cond).sum(), slope)
    torch.testing.assert_close(gradient, -2 * xt.sum())
    xt.requires_grad_()
    with torch.no_grad():
        assert not guided.score(xt, t, cond).requires_grad
    with torch.inference_mode(), pytest.raises(ValueError, match="ClassifierGuidance differentia"):
        guided.score(xt.detach(), t, cond)


def test_outside_of_the_interval_the_condition_alone_counts():
    mixture = class_mixture(VP())
    spy = Spy(mixture)
    guided = ClassifierFreeGuidance(spy, 4.0, interval=(0.2, 0.6))
    xt, _, cond = inputs(mixture, n=6)
    t = torch.tensor([0.0, 0.19, 0.2, 0.4, 0.6, 0.61], dtype=torch.float64)
    inside = torch.tensor([False, False, True, True, True, False])  # both ends belong to it
    got = ClassifierFreeGuidance(mixture, 4.0, interval=(0.2, 0.6)).noise(xt, t, cond)
    torch.testing.assert_close(got[~inside], mixture.noise(xt, t, cond)[~inside], rtol=0, atol=0)
    always = ClassifierFreeGuidance(mixture, 4.0).noise(xt, t, cond)
    torch.testing.assert_close(got[inside], always[inside])
    for time in (0.1, 0.6001, 0.2, 0.6):
        guided.noise(xt, full(6, time), cond)
    assert spy.rows == [6, 6, 12, 12]


@pytest.mark.parametrize("schedule", [linear_schedule(0.5, 4.0), cosine_schedule(0.5, 4.0)])
def test_a_schedule_gives_each_sample_the_scale_of_its_time(schedule):
    ends = schedule(torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.5, 4.0, 2.25], dtype=torch.float64))
    mixture = class_mixture(Linear())
    xt, t, cond = inputs(mixture)
    got = ClassifierFreeGuidance(mixture, schedule).velocity(xt, t, cond)
    for i in range(len(t)):
        one = ClassifierFreeGuidance(mixture, schedule(t[i : i + 1]).item())
        expected = one.velocity(xt[i : i + 1], t[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], expected)


def test_the_cosine_schedule_is_half_a_cosine():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = [1 + 2 * math.cos(math.pi / 2 * u) ** 2 for u in t.tolist()]
    torch.testing.assert_close(cosine_schedule(1.0, 3.0)(t).tolist(), expected)


class Images(Denoiser):
    """Data predictions that differ in level and contrast between conditions."""

    path, predicts = VP(), "data"

    def predict(self, xt, t, cond=None):
        level = cond.to(xt)[:, None, None, None]
        return xt * (1 + level) + level

    def null_condition(self, cond):
        return torch.zeros_like(cond)


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_is_equations_14_to_16(phi):
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, cond = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 0])
    inner, guided = Images(), ClassifierFreeGuidance(Images(), 5.0, rescale=phi)
    got = guided.data(x, t, cond)
    for i in range(5):
        pos = inner.predict(x[i : i + 1], t[i : i + 1], cond[i : i + 1])
        neg = inner.predict(x[i : i + 1], t[i : i + 1], 0 * cond[i : i + 1])
        cfg = neg + 5 * (pos - neg)
        rescaled = cfg * pos.std() / cfg.std()  # eq. 14 and 15
        torch.testing.assert_close(got[i : i + 1], phi * rescaled + (1 - phi) * cfg)  # eq. 16
    for face in FACES:
        expected = VP().convert(got, x, t, "data", face)
        torch.testing.assert_close(getattr(guided, face)(x, t, cond), expected)
    torch.testing.assert_close(guided.predict(x, t, cond), got)


def test_rescale_at_the_ends_of_the_scale():
    x, t = (
        torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.full((3,), 0.5),
    )
    cond, inner = torch.tensor([1, 2, 3]), Images()
    same = ClassifierFreeGuidance(inner, 1.0, rescale=1.0).data(x, t, cond)
    assert torch.equal(same, inner.data(x, t, cond))
    # At 0 the level and form are the unconditional ones, the contrast still the conditional one.
    weak = ClassifierFreeGuidance(inner, 0.0, rescale=1.0).data(x, t, cond)
    torch.testing.assert_close(weak, x * (1 + cond[:, None, None, None]))
    # A constant has no contrast to bring back, and neither has a sample of one number.
    flat = ClassifierFreeGuidance(inner, 2.0, rescale=1.0).data(0 * x, t, cond)
    torch.testing.assert_close(flat, 2.0 * cond[:, None, None, None].expand_as(x))
    one = ClassifierFreeGuidance(inner, 2.0, rescale=1.0).data(x[..., :1, :1], t, cond)
    assert one.isfinite().all()


class WrongNegativePrompt(Denoiser):
    """The rule that circulates: its weights sum to one half."""

    predicts = "noise"

    def __init__(self, denoiser, negative):
        super().__init__()
        self.denoiser, self.negative, self.path = denoiser, negative, denoiser.path

    def predict(self, xt, t, cond=None):
        against = self.denoiser.noise(xt, t, self.negative.expand(len(xt)))
        return self.denoiser.noise(xt, t, cond) - 0.5 * against


@pytest.mark.parametrize(("path", "wrong"), [(VE(0.002, 80.0), 8.94), (VP(), 12.33)])
def test_weights_that_do_not_sum_to_one_blow_samples_up(path, wrong):
    """N(0, 1) for both prompts, from sigma = 80: 80 / (1 + 80^2)^(1/4); on VP alpha^(-1/2)."""
    mixture, negative = normals(path, [0.0, 0.0]), torch.tensor([1])
    ts = lambda_grid(path, 60) if isinstance(path, VE) else uniform_grid(path, 60)
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    x, cond = path.sigma(ts[:1]) * x / x.std(), torch.zeros(101, dtype=torch.int64)
    rk4 = SOLVERS["rk4"]
    std = rk4(WrongNegativePrompt(mixture, negative), x, ts, cond=cond).std().item()
    assert std == pytest.approx(wrong, abs=0.01)
    right = rk4(NegativePrompt(mixture, negative, 1.5), x, ts, cond=cond).std().item()
    assert right == pytest.approx(1, abs=1e-3)


class TokenNet(nn.Module):
    """Adds the sum of the tokens that the mask keeps."""

    def forward(self, x, t, cond=None):
        tokens, mask = cond
        return x + (tokens * mask[..., None]).sum(1)

    def null_condition(self, cond):
        return cond[0], torch.zeros_like(cond[1])


def test_conditions_of_several_parts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 3, 2, generator=generator)
    mask = torch.tensor([[True, True, False]]).repeat(4, 1)
    x, t = torch.randn(4, 2, generator=generator), torch.full((4,), 0.5)
    text = tokens[:, :2].sum(1)
    denoiser = NetDenoiser(TokenNet(), VP())
    got = ClassifierFreeGuidance(denoiser, 3.0).noise(x, t, (tokens, mask))
    torch.testing.assert_close(got, x + 3 * text)
    # A negative text of one row counts for every sample.
    negative = tokens[:1], ~mask[:1]
    got = NegativePrompt(denoiser, negative, 3.0).noise(x, t, (tokens, mask))
    torch.testing.assert_close(got, x + 3 * text - 2 * tokens[0, 2])
    for bad in (tokens, (tokens,), (tokens[:2], mask[:2]), (tokens[:, :2], mask[:, :2]), (None, 1)):
        with pytest.raises(ValueError, match=r"negative must be like cond, \(\(4, 3, 2\) torch"):
            NegativePrompt(denoiser, bad, 3.0).noise(x, t, (tokens, mask))
    with pytest.raises(ValueError, match="cond must have 4 rows; got"):
        NegativePrompt(denoiser, negative, 3.0).noise(x, t, (tokens[:1], mask[:1]))


def test_a_network_with_labels_knows_its_null_condition():
    net = DiT(image_size=4, patch=2, dim=8, depth=1, heads=2, num_classes=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x, t = torch.randn(2, 1, 4, 4, generator=generator), torch.full((2,), 0.5)
    denoiser, cond = NetDenoiser(net.eval(), Linear(), "velocity"), torch.tensor([0, 2])
    with_cond, without = denoiser.velocity(x, t, cond), denoiser.velocity(x, t)
    assert not torch.allclose(with_cond, without)
    got = ClassifierFreeGuidance(denoiser, 2.0).velocity(x, t, cond)
    torch.testing.assert_close(got, 2 * with_cond - without, rtol=1e-4, atol=1e-5)
    assert torch.equal(ClassifierFreeGuidance(denoiser, 0).velocity(x, t, cond), without)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_takes_guided_denoisers(name):
    """Normals of one variance: guided by s, their field is that of N(m_null + s (m_c - m_null))."""
    mixture = normals(VP(), [1.0, -0.5, 0.3], std=0.7)
    expected = sample(normals(VP(), [-0.5 + 3 * 1.5], std=0.7), (6, 1), solver=name, steps=5)
    cond = torch.zeros(6, dtype=torch.int64)
    guided = NegativePrompt(mixture, torch.tensor([1]), 3.0)
    got = sample(guided, (6, 1), solver=name, steps=5, cond=cond)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # dopri5: its own tolerance
    mixture, cond = class_mixture(Linear()), torch.tensor([0, 1, 2, 0])
    expected = sample(ClassifierFreeGuidance(mixture, 2.0), (4, 2), solver=name, steps=5, cond=cond)
    by_classifier = ClassifierGuidance(mixture, log_prob_of(mixture), 2.0)
    got = sample(by_classifier, (4, 2), solver=name, steps=5, cond=cond)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_log_likelihood_of_guided_samples():
    mixture = normals(VP(), [1.0, -0.5], std=0.7)
    x = torch.linspace(3, 5, 5, dtype=torch.float64)[:, None]
    cond = torch.zeros(5, dtype=torch.int64)
    guided = NegativePrompt(mixture, torch.tensor([1]), 3.0)
    ts = angle_grid(VP(), 12)
    got = log_likelihood(guided, x, ts, cond=cond)
    same = log_likelihood(normals(VP(), [4.0], std=0.7), x, ts)
    torch.testing.assert_close(got, same)
    exact = torch.distributions.Normal(4.0, 0.7).log_prob(x[:, 0])
    torch.testing.assert_close(got, exact, rtol=0, atol=0.05)  # VP ends near N(0, 1), not in it
    mixture = class_mixture(Linear())
    x, cond = mixture.sample(3, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    ts = angle_grid(Linear(), 5, t_min=1e-3)
    expected = log_likelihood(ClassifierFreeGuidance(mixture, 2.0), x, ts, cond=cond)
    by_classifier = ClassifierGuidance(mixture, log_prob_of(mixture), 2.0)
    got = log_likelihood(by_classifier, x, ts, cond=cond)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_guided_denoisers_nest():
    mixture = class_mixture(VP())
    xt, t, cond = inputs(mixture)
    by_classifier = ClassifierGuidance(mixture, log_prob_of(mixture), 1.0)
    twice = ClassifierFreeGuidance(ClassifierFreeGuidance(mixture, 2.0), 3.0)
    expected = ClassifierFreeGuidance(mixture, 6.0).noise(xt, t, cond)
    torch.testing.assert_close(twice.noise(xt, t, cond), expected)
    torch.testing.assert_close(by_classifier.noise(xt, t, cond), mixture.noise(xt, t, cond))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda d: ClassifierFreeGuidance(nn.Linear(2, 2), 2.0), TypeError, "NetDenoiser"),
        (lambda d: ClassifierGuidance(nn.Linear(2, 2), print, 2.0), TypeError, "NetDenoiser"),
        (lambda d: ClassifierFreeGuidance(d, math.nan), ValueError, "scale must be finite; got n"),
        (lambda d: ClassifierGuidance(d, print, math.inf), ValueError, "scale must be finite"),
        (lambda d: ClassifierFreeGuidance(d, "2"), TypeError, "number or a function of t; got str"),
        (lambda d: ClassifierFreeGuidance(d, 2, interval=(0.6, 0.2)), ValueError, "interval must"),
        (lambda d: ClassifierFreeGuidance(d, 2, interval=(0, 2.0)), ValueError, "interval must"),
        (lambda d: ClassifierFreeGuidance(d, 2, interval=(0.5,)), ValueError, "interval must"),
        (lambda d: ClassifierFreeGuidance(d, 2, rescale=1.5), ValueError, r"rescale must .*1\.5"),
        (lambda d: NegativePrompt(d, None, 2.0), ValueError, "negative must be a condition"),
        (lambda d: ClassifierGuidance(d, 2.0, 2.0), TypeError, "log_prob must be .*got float"),
    ],
)
def test_bad_parts_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make(class_mixture(VP()))


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("make", "cond", "match"),
    [
        (lambda d: ClassifierFreeGuidance(d, 2), None, "ClassifierFreeGuidance needs a condition"),
        (lambda d: NegativePrompt(d, LABELS, 2), None, "NegativePrompt needs a condition"),
        (lambda d: ClassifierGuidance(d, log_prob_of(d), 2), None, "Guidance needs a condition"),
        (lambda d: ClassifierFreeGuidance(d, 2), LABELS[:3], r"4 rows; got \(3,\) torch.int64"),
        (lambda d: ClassifierFreeGuidance(d, 2, 3), LABELS, "null_cond must be like .*; got 3"),
        (lambda d: ClassifierFreeGuidance(d, 2, LABELS[:2]), LABELS, "null_cond must be like cond"),
        (lambda d: NegativePrompt(d, LABELS[:2], 2), LABELS, r"negative .* one row; got \(2,\)"),
        (lambda d: NegativePrompt(d, LABELS.float(), 2), LABELS, "got .*float32"),
        (lambda d: ClassifierFreeGuidance(d, lambda t: 2.0), LABELS, r"shape of t, \(4,\); got fl"),
        (lambda d: ClassifierFreeGuidance(d, lambda t: t[:2]), LABELS, r"got \(2,\)"),
        (lambda d: ClassifierFreeGuidance(d, lambda t: t / 0), LABELS, "must be finite; got"),
        (lambda d: ClassifierGuidance(d, lambda x, t, c: x, 2), LABELS, r"got \(4, 2\)"),
        (lambda d: ClassifierGuidance(d, lambda x, t, c: t, 2), LABELS, "without gradient"),
    ],
)
def test_bad_conditions_and_functions_are_refused(make, cond, match):
    x, t = torch.zeros(4, 2, dtype=torch.float64), full(4, 0.5)
    with pytest.raises(ValueError, match=match):
        make(class_mixture(VP())).data(x, t, cond)


def test_times_are_checked_and_a_missing_null_condition_is_told():
    mixture = class_mixture(VP())
    for rule in RULES.values():
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            rule(mixture, 2.0).data(torch.zeros(4, 2).double(), full(4, 1.5), LABELS)

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return x

    guided = ClassifierFreeGuidance(NetDenoiser(Net(), VP()), 2.0)
    with pytest.raises(ValueError, match="give null_cond"):
        guided.noise(torch.zeros(4, 2), torch.full((4,), 0.5), LABELS)
