"""The exact mixture against autograd and Monte Carlo; networks against the algebra."""

import pytest
import torch
from exact import class_mixture, mixture_2d
from torch import nn

from course_lib import VP, Denoiser, GaussianMixture, Linear, NetDenoiser
from course_lib.paths import VE

FACES = ["noise", "data", "v", "velocity", "score"]


def points(mixture, n=40, low=0.05, high=0.95, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(low, high, n, dtype=torch.float64)
    return mixture.sample(n, t, generator), t


def test_score_is_the_gradient_of_log_prob(mixture):
    xt, t = points(mixture, low=0.0, high=1.0)
    xt.requires_grad_()
    (expected,) = torch.autograd.grad(mixture.log_prob(xt, t).sum(), xt)
    torch.testing.assert_close(mixture.score(xt, t).detach(), expected)


def test_log_prob_against_torch_distributions(mixture):
    xt, t = points(mixture)
    for x, time in zip(xt[:5], t[:5], strict=True):
        alpha, sigma = mixture.path.alpha(time), mixture.path.sigma(time)
        axes, variances = mixture._axes, mixture._variances
        covs = alpha**2 * (axes * variances[:, None]) @ axes.mT + sigma**2 * torch.eye(2)
        parts = torch.distributions.MultivariateNormal(alpha * mixture.means, covs)
        weights = torch.distributions.Categorical(logits=mixture._log_weights)
        oracle = torch.distributions.MixtureSameFamily(weights, parts)
        torch.testing.assert_close(mixture.log_prob(x[None], time[None])[0], oracle.log_prob(x))


@pytest.mark.parametrize("face", FACES)
def test_every_face_agrees_with_the_conversion_of_every_other(mixture, face):
    xt, t = points(mixture)
    for other in FACES:
        converted = mixture.path.convert(getattr(mixture, other)(xt, t), xt, t, other, face)
        torch.testing.assert_close(converted, getattr(mixture, face)(xt, t), rtol=1e-6, atol=1e-8)


def test_all_faces_are_finite_at_both_ends(mixture):
    xt, _ = points(mixture, n=6)
    for end in (torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)):
        for face in FACES:
            assert getattr(mixture, face)(xt, end).isfinite().all(), face


def test_posterior_mean_is_the_data_prediction(mixture):
    xt, t = points(mixture, low=0.0, high=1.0)
    posterior = mixture.posterior(xt, t)
    mean = torch.einsum("bk,bkd->bd", posterior.weights, posterior.means)
    torch.testing.assert_close(mean, mixture.data(xt, t))
    torch.testing.assert_close(posterior.covs, posterior.covs.mT)


def test_posterior_against_self_normalised_importance_sampling(generator):
    mixture = mixture_2d(VP())
    xt, t = (
        torch.tensor([[0.3, -0.4]], dtype=torch.float64),
        torch.tensor([0.35], dtype=torch.float64),
    )
    x0 = mixture.sample(400_000, generator=generator)
    alpha, sigma = mixture.path.alpha(t), mixture.path.sigma(t)
    weights = (-((xt - alpha * x0) ** 2).sum(1) / (2 * sigma**2)).softmax(0)
    mean = weights @ x0
    cov = (weights[:, None] * (x0 - mean)).T @ (x0 - mean)
    posterior = mixture.posterior(xt, t)
    exact_mean = mixture.data(xt, t)[0]
    spread = posterior.means[0] - exact_mean
    exact_cov = torch.einsum("k,kde->de", posterior.weights[0], posterior.covs[0])
    exact_cov = exact_cov + torch.einsum("k,kd,ke->de", posterior.weights[0], spread, spread)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=0.01)  # about 3 standard errors
    torch.testing.assert_close(cov, exact_cov, rtol=0, atol=0.01)


def test_samples_have_the_moments_of_the_mixture(generator):
    mixture = mixture_2d(Linear())
    n = 200_000
    weights = mixture._log_weights.exp()
    mean0 = weights @ mixture.means
    for time in (0.0, 0.4):
        t = torch.full((n,), time, dtype=torch.float64)
        x = mixture.sample(n, t if time else None, generator)
        standard_error = x.std(0) / n**0.5
        assert ((x.mean(0) - (1 - time) * mean0).abs() < 4 * standard_error).all()
        nll = -mixture.log_prob(x, t)
        # Gibbs: the cross entropy under a wrong time is larger.
        wrong = -mixture.log_prob(x, torch.full_like(t, 0.9 if time < 0.5 else 0.0))
        assert nll.mean() < wrong.mean()


def test_float32_input_gives_float32_output(path):
    mixture = mixture_2d(path)
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.5)
    for face in FACES:
        assert getattr(mixture, face)(x, t).dtype == torch.float32


def test_a_label_leaves_the_components_of_its_class(path):
    mixture = class_mixture(path)
    xt, t = points(mixture, n=42, low=0.0, high=1.0)
    labels = torch.arange(42) % 4  # 3: no label
    for c in range(4):
        keep = (mixture.classes == c) | torch.tensor(c == 3)
        covs = mixture._axes * mixture._variances[:, None] @ mixture._axes.mT
        oracle = GaussianMixture(
            mixture.means[keep], covs[keep], mixture._log_weights[keep].exp(), path
        )
        mine = labels == c
        for method in (*FACES, "log_prob"):
            got = getattr(mixture, method)(xt, t, labels)[mine]
            torch.testing.assert_close(got, getattr(oracle, method)(xt[mine], t[mine]), msg=method)
        posterior = mixture.posterior(xt, t, labels)
        weights = posterior.weights[mine][:, keep]
        torch.testing.assert_close(weights, oracle.posterior(xt[mine], t[mine]).weights)
    whole = torch.full_like(labels, 3)
    torch.testing.assert_close(mixture.data(xt, t, whole), mixture.data(xt, t))


def test_class_probabilities_are_those_of_bayes(path):
    mixture = class_mixture(path)
    xt, t = points(mixture, low=0.0, high=1.0)
    prior = torch.tensor([0.3 + 0.15 + 0.1, 0.25, 0.2], dtype=torch.float64)
    of_class = [mixture.log_prob(xt, t, torch.full((40,), c)) for c in range(3)]
    expected = prior.log() + torch.stack(of_class, dim=1) - mixture.log_prob(xt, t)[:, None]
    torch.testing.assert_close(mixture.log_class_prob(xt, t), expected)
    far = mixture.log_class_prob(1e4 * xt.sign(), torch.zeros_like(t))
    assert far.isfinite().all()


def test_samples_of_a_class_have_its_moments(generator):
    mixture = class_mixture(Linear())
    n = 30_000
    labels = torch.arange(n) % 3
    for time in (0.0, 0.4):
        t = torch.full((n,), time, dtype=torch.float64) if time else None
        x = mixture.sample(n, t, generator, cond=labels)
        for c in range(3):
            keep = mixture.classes == c
            mean = (mixture._log_weights[keep].softmax(0) @ mixture.means[keep]) * (1 - time)
            mine = x[labels == c]
            assert ((mine.mean(0) - mean).abs() < 4 * mine.std(0) / len(mine) ** 0.5).all()
            if not time:  # clean samples lie where their own class is likely
                there = mixture.log_class_prob(mine, torch.zeros(len(mine)).double())
                assert (there[:, c].exp() > 0.5).double().mean() > 0.97


def test_null_condition_of_a_mixture_and_of_a_network():
    mixture = class_mixture(VP())
    assert mixture.num_classes == 3
    assert mixture_2d(VP()).num_classes == 0
    assert mixture.null_condition(torch.tensor([0, 2, 1])).tolist() == [3, 3, 3]

    class Net(Answer):
        def null_condition(self, cond):
            return torch.full_like(cond, 10)

    cond = torch.tensor([1, 2])
    assert NetDenoiser(Net(None), VP()).null_condition(cond).tolist() == [10, 10]
    with pytest.raises(ValueError, match="NetDenoiser has no condition that means none: give null"):
        NetDenoiser(Answer(None), VP()).null_condition(cond)
    with pytest.raises(ValueError, match="takes no condition without classes"):
        mixture_2d(VP()).null_condition(cond)


@pytest.mark.parametrize(
    ("cond", "match"),
    [
        (torch.tensor([0, 1, 2]), "one label for each of 4 samples; got 3"),
        (torch.tensor([0, 1, 2, 4]), r"labels 0 to 3 .*got \[0, 1, 2, 4\]"),
        (torch.tensor([0, -1, 2, 1]), "labels 0 to 3"),
        (torch.zeros(4), r"labels \(B,\) int64; got .*float32"),
        (torch.zeros(4, 1, dtype=torch.int64), r"got \(\(4, 1\)"),
        ([0, 1, 2, 0], "got <class 'list'>"),
    ],
)
def test_what_is_no_label_is_refused(cond, match):
    x, t = torch.zeros(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=match):
        class_mixture(VP()).data(x, t, cond)


def test_class_probabilities_need_classes():
    x, t = torch.zeros(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs a GaussianMixture with classes"):
        mixture_2d(VP()).log_class_prob(x, t)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"covs": torch.eye(2).repeat(2, 1, 1)}, "covs of shape"),
        ({"weights": torch.ones(2)}, "weights of shape"),
        ({"covs": -torch.eye(2).repeat(3, 1, 1)}, "positive definite"),
        ({"covs": torch.tensor([[1.0, 0.5], [0.0, 1.0]]).repeat(3, 1, 1)}, "symmetric"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "weights must be positive"),
        ({"classes": torch.tensor([0, 1])}, r"classes must have shape \(3,\)"),
        ({"classes": torch.tensor([0.0, 1.0, 1.0])}, "type int64"),
        ({"classes": torch.tensor([0, 2, 2])}, r"0 to C - 1, each with a component; got \[0, 2\]"),
    ],
)
def test_bad_mixtures_are_refused(change, match):
    good = {
        "means": torch.zeros(3, 2),
        "covs": torch.eye(2).repeat(3, 1, 1),
        "weights": torch.ones(3),
    }
    with pytest.raises(ValueError, match=match):
        GaussianMixture(**(good | change), path=VP())


def test_mixture_refuses_what_it_cannot_use():
    mixture, t = mixture_2d(VP()), torch.full((4,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="D = 2"):
        mixture.score(torch.zeros(4, 3, dtype=torch.float64), t)
    with pytest.raises(ValueError, match="t must have shape"):
        mixture.score(torch.zeros(3, 2, dtype=torch.float64), t)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        mixture.data(torch.zeros(4, 2, dtype=torch.float64), 3 * t)
    with pytest.raises(ValueError, match="no condition"):
        mixture.data(torch.zeros(4, 2, dtype=torch.float64), t, cond=t)


class Answer(nn.Module):
    """A "network" that returns the exact answer, or what it is told to return."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t, cond=None):
        return self.function(x, t)


@pytest.mark.parametrize("predicts", FACES)
def test_net_denoiser_has_the_faces_of_what_its_network_knows(path, predicts):
    mixture = mixture_2d(path)
    data_std = 1.3

    def exact(x, t):
        scale = torch.sqrt(path.alpha(t) ** 2 * data_std**2 + path.sigma(t) ** 2)
        return getattr(mixture, predicts)(x * scale[:, None], t)

    denoiser = NetDenoiser(Answer(exact), path, predicts, data_std=data_std)
    xt, t = points(mixture)
    for face in FACES:
        torch.testing.assert_close(
            getattr(denoiser, face)(xt, t), getattr(mixture, face)(xt, t), rtol=1e-6, atol=1e-8
        )


def test_network_input_has_unit_variance():
    seen = {}

    def spy(x, t):
        seen["std"] = x.std().item()
        return x

    path = VE(0.01, 50.0)
    denoiser = NetDenoiser(Answer(spy), path, data_std=0.5)
    generator = torch.Generator().manual_seed(0)
    for time in (0.1, 0.5, 1.0):
        x0 = 0.5 * torch.randn(4000, 8, generator=generator)
        eps = torch.randn(4000, 8, generator=generator)
        t = torch.full((4000,), time)
        denoiser.noise(path.sample(x0, t, eps), t)
        assert seen["std"] == pytest.approx(1, abs=0.02)


def test_net_denoiser_refuses_bad_parts():
    net = Answer(lambda x, t: x[:, :1])
    with pytest.raises(TypeError, match=r"the order is net, path\); got Answer"):
        NetDenoiser(VP(), net)
    with pytest.raises(ValueError, match="data_std"):
        NetDenoiser(net, VP(), data_std=0.0)
    with pytest.raises(ValueError, match="got 'epsilon'"):
        NetDenoiser(net, VP(), "epsilon")
    with pytest.raises(ValueError, match=r"Answer returned \(4, 1\)"):
        NetDenoiser(net, VP()).noise(torch.zeros(4, 2), torch.full((4,), 0.5))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        NetDenoiser(net, VP()).noise(torch.zeros(4, 2), torch.full((4,), -0.5))
    with pytest.raises(NotImplementedError):
        Denoiser().predict(torch.zeros(1, 1), torch.zeros(1))
