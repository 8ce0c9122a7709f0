"""Models broken on purpose, each in one way: the report must name it, and nothing else."""

import pytest
import torch
from torch import nn

from course_lib import VP, CosineVP, Denoiser, GaussianMixture, Linear, NetDenoiser, sample
from course_lib.data import (
    digits,
    eight_gaussians,
    eight_gaussians_labels,
    eight_gaussians_parameters,
)
from course_lib.evaluation import diagnose
from course_lib.nets import MLP
from course_lib.pretrained import load_pretrained
from course_lib.training import fit

X = eight_gaussians(2000, seed=1)
MEANS, COVS, WEIGHTS = eight_gaussians_parameters()
QUICK = {"polish": 0}
FAULTS = {
    "wrong data scale",
    "swapped time",
    "schedule mismatch",
    "wrong prediction target",
    "collapsed modes",
    "too high learning rate",
    "missing EMA",
    "memorised data",
}


def trained(data=X, path=None, predicts="velocity", seed=0, **options):
    torch.manual_seed(seed)
    model = NetDenoiser(MLP(2, 64), path or Linear(), predicts, data_std=3.5)
    options = {
        "steps": 400,
        "batch_size": 128,
        "lr": 5e-3,
        "ema": 0.99,
        "lr_schedule": "cosine",
        "progress": False,
    } | options
    return fit(model, data, **options)


@pytest.fixture(scope="module")
def healthy():
    return trained()


@pytest.fixture(scope="module")
def on_cosine():
    return trained(path=CosineVP(), steps=300)


def names_only(report, cause):
    assert cause in report.causes
    assert not FAULTS & set(report.causes) - {cause}
    assert report.verdict == "bad"


# Healthy models


@pytest.mark.parametrize("path", [Linear(), VP(), CosineVP()], ids=str)
def test_the_exact_mixture_is_well(path):
    report = diagnose(GaussianMixture(MEANS, COVS, WEIGHTS, path), X)
    assert report.verdict == "ok"
    assert report.causes == ()
    assert {f.verdict for f in report.findings} == {"ok", "skipped"}
    skipped = {f.check for f in report.findings if f.verdict == "skipped"}
    assert skipped == {"history of loss", "rest of weights", "classes", "labels"}


def test_a_trained_model_is_well(healthy):
    before = {name: p.clone() for name, p in healthy.state_dict().items()}
    report = diagnose(healthy, X)
    assert all(f.verdict != "bad" for f in report.findings), str(report)
    assert not FAULTS & set(report.causes)
    assert report["history of loss"].verdict == "ok"  # taken from the model
    assert all(torch.equal(p, before[name]) for name, p in healthy.state_dict().items())


def test_a_pretrained_model_of_digits_is_well():
    report = diagnose(load_pretrained("digits-flow"), digits()[0], n=64, steps=8, polish=4)
    assert all(f.verdict != "bad" for f in report.findings), str(report)
    assert report.causes == ()


def test_labels_are_followed_by_the_mixture_with_classes():
    exact = GaussianMixture(MEANS, COVS, WEIGHTS, VP(), torch.arange(8))
    report = diagnose(exact, (X, eight_gaussians_labels(X)))
    assert report.verdict == "ok"
    assert report["labels"].evidence.startswith("100% of the samples")
    assert report["classes"].verdict == "ok"


# Broken on purpose


@pytest.mark.parametrize(
    "data",
    [4 * X, X / 4, (X + 7) / 14 * 255, (X + 7) / 14],
    ids=["larger", "smaller", "0..255", "0..1"],
)
def test_wrong_data_scale(healthy, data):
    report = diagnose(healthy, data, **QUICK)
    names_only(report, "wrong data scale")
    assert report.causes == ("wrong data scale",)
    factor = float(report["size of samples"].evidence.split("Data times ")[1].split(" ")[0])
    assert factor == pytest.approx(3.55 / data.std().item(), rel=0.05)


def test_data_scale_without_a_model_that_knows_better():
    """Trained on bytes: the samples agree with the data, and still the network sees 70."""
    big = (X + 7) / 14 * 255
    exact = GaussianMixture(MEANS, COVS, WEIGHTS, Linear())
    bytes_of = GaussianMixture(
        (exact.means + 7) / 14 * 255, COVS * (255 / 14) ** 2, WEIGHTS, Linear()
    )
    network = NetDenoiser(_Says(bytes_of), Linear(), "data", data_std=1.0)
    report = diagnose(network, big, **QUICK)
    assert report["data"].cause == "wrong data scale"
    assert "64.6 times the model's data_std 1" in report["data"].evidence
    report = diagnose(
        GaussianMixture(
            bytes_of.means,
            bytes_of.means.new_tensor(33.0).expand(8)[:, None, None] * torch.eye(2),
            WEIGHTS,
            VP(),
        ),
        big,
    )
    assert "at t = 1 the data still stand" in report["data"].evidence


class _Says(nn.Module):
    """A network that answers as an exact denoiser does, from inputs of any scale."""

    def __init__(self, exact, data_std=1.0):
        super().__init__()
        self.exact, self.data_std = exact, data_std

    def forward(self, x, t, cond=None):
        (scale,) = self.exact.path.at("input_scale", t, x, self.data_std)
        return self.exact.predict(x / scale, t)


class Blank(Denoiser):
    """Images of which nothing is known but that they are about 0."""

    path, predicts = Linear(), "data"

    def predict(self, xt, t, cond=None):
        return torch.zeros_like(xt)


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        (lambda x: x, "ok", "range -1 to 1"),
        (lambda x: (x + 1) / 2, "look", "pixels are never negative: range 0 to 1"),
        (lambda x: (x + 1) * 127.5, "bad", "pixels in range 0 to 255"),
    ],
)
def test_range_of_images(change, verdict, words):
    found = diagnose(Blank(), change(digits()[0][:200]), n=32, steps=2)["data"]
    assert found.verdict == verdict
    assert found.cause == ("" if verdict == "ok" else "wrong data scale")
    assert words in found.evidence


class Backwards(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond=None):
        return self.net(x, 1 - t, cond)


def test_swapped_time(healthy):
    wrong = NetDenoiser(Backwards(healthy.net), Linear(), "velocity", data_std=3.5)
    report = diagnose(wrong, X, **QUICK)
    names_only(report, "swapped time")
    assert report.causes == ("swapped time",)  # put right, the rest is as it should be


def test_swapped_time_of_what_is_no_network():
    class Turned(GaussianMixture):
        def predict(self, xt, t, cond=None):
            return super().predict(xt, 1 - t, cond)

    report = diagnose(Turned(MEANS, COVS, WEIGHTS, VP()), X)
    assert report.causes == ("swapped time",)


@pytest.mark.parametrize("path", [Linear(), VP()], ids=str)
def test_schedule_mismatch(on_cosine, path):
    wrong = NetDenoiser(on_cosine.net, path, "velocity", data_std=3.5)
    report = diagnose(wrong, X, **QUICK)
    names_only(report, "schedule mismatch")
    assert "CosineVP" in report["use"].advice


def test_wrong_prediction_target(healthy):
    wrong = NetDenoiser(healthy.net, Linear(), "noise", data_std=3.5)
    report = diagnose(wrong, X, **QUICK)
    names_only(report, "wrong prediction target")
    assert '"velocity"' in report["use"].advice


def test_too_high_learning_rate():
    broken = trained(lr=0.1, lr_schedule="constant", steps=100, batch_size=64)
    report = diagnose(broken, X)
    names_only(report, "too high learning rate")
    assert report["level of loss"].verdict == "bad"
    assert report.causes == ("too high learning rate",)  # bad samples only follow from it


def test_missing_ema():
    broken = trained(lr=1e-2, lr_schedule="constant", ema=0, steps=300, batch_size=64)
    report = diagnose(broken, X)
    names_only(report, "missing EMA")
    assert report["rest of weights"].verdict == "bad"


def test_trained_too_short():
    broken = trained(steps=60, lr=1e-3, lr_schedule="constant")
    report = diagnose(broken, X)
    assert report.causes == ("trained too short",)


def test_collapsed_modes_of_a_trained_model():
    some = X[eight_gaussians_labels(X) < 5]
    report = diagnose(trained(some, steps=200), (X, eight_gaussians_labels(X)), **QUICK)
    names_only(report, "collapsed modes")
    assert "3 of 8 missing" in report["coverage"].evidence
    assert all(f"class {c} 0.0% for 1" in report["classes"].evidence for c in (5, 6, 7))


def test_collapsed_and_thin_modes_exactly():
    without = GaussianMixture(MEANS[:7], COVS[:7], WEIGHTS[:7], VP())
    report = diagnose(without, X)
    names_only(report, "collapsed modes")
    assert "1 of 8 missing" in report["coverage"].evidence
    assert "at (3.5, -3.5) 0.0% for" in report["coverage"].evidence
    rare = torch.tensor([1.0] * 7 + [0.25])
    assert diagnose(GaussianMixture(MEANS, COVS, rare, VP()), X).causes == ("thin modes",)


@pytest.mark.parametrize("count", [20, 100])
def test_memorised_data(count):
    few = X[:count]
    memory = GaussianMixture(few, 1e-5 * torch.eye(2).repeat(count, 1, 1), torch.ones(count), VP())
    names_only(diagnose(memory, few), "memorised data")
    assert "memorised data" not in diagnose(memory, X[count:]).causes  # new to the model


def test_noise_left_in_samples():
    exact = GaussianMixture(MEANS, COVS, WEIGHTS, VP())
    report = diagnose(exact, X, solver=_noisy)
    assert report.causes == ("noise left in samples",)
    assert "noise of 0.0" in report["noise left"].evidence  # .4 of 3.55, and one step takes a part


def _noisy(denoiser, x, ts, *, cond, generator, callback):
    x = sample(denoiser, x.shape, seed=int(x.sum().abs() * 1000))
    return x + 0.4 * torch.randn(x.shape, generator=generator)
