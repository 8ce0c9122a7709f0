"""Frechet distance against the Bures formula; a tiny classifier stands in for the pretrained."""

import re
import sys
import types

import pytest
import torch
from torch import nn

from course_lib.evaluation import (
    class_agreement,
    digit_features,
    digit_logits,
    features,
    frechet_distance,
)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_moments(mean, cov, n=50, seed=0):
    """A sample whose mean and covariance are exactly the given ones."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return mean + (torch.linalg.cholesky(cov) @ white).T


class TinyClassifier(nn.Module):
    """Features: the mean brightness of the four quadrants; logits: the same."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes = []

    def features(self, images):
        self.modes.append(self.training)
        return self.scale * nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    def forward(self, images):
        return self.features(images)


def test_frechet_of_samples_with_known_moments():
    mean, cov = double([1.0, 2.0]), double([[4.0, 1.0], [1.0, 3.0]])
    x = with_moments(torch.zeros(2).double(), torch.eye(2).double())
    y = with_moments(mean, cov, n=80, seed=1)
    # To the identity: |m|^2 + tr(C) + D - 2 tr(C^1/2).
    root_trace = torch.linalg.eigvalsh(cov).sqrt().sum().item()
    assert frechet_distance(x, y) == pytest.approx(5 + 7 + 2 - 2 * root_trace, rel=1e-10)


def test_frechet_in_one_dimension():
    x, y = double([[0.0], [2.0]]), double([[1.0], [5.0]])  # means 1, 3; deviations sqrt 2, sqrt 8
    assert frechet_distance(x, y) == pytest.approx(4 + 2, rel=1e-12)


def test_frechet_of_a_sample_with_itself_is_zero():
    # Fewer samples than features: the covariance is singular, its square root still stable.
    x = 100 * normal(10, 30)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_errors():
    with pytest.raises(ValueError, match="N >= 2"):
        frechet_distance(normal(1, 2), normal(5, 2))
    with pytest.raises(ValueError, match="same dimension"):
        frechet_distance(normal(4, 2), normal(5, 3))


def test_features_and_logits_come_in_batches_in_evaluation_mode():
    model = TinyClassifier().train()
    images = normal(7, 1, 8, 8)
    expected = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
    for function in (digit_features, digit_logits):
        output = function(images, model, batch_size=3)
        assert torch.equal(output, expected)
        assert not output.requires_grad
    assert model.training
    assert model.modes == [False] * 6


def test_mode_is_restored_when_the_classifier_fails():
    model = TinyClassifier().train()
    with pytest.raises(RuntimeError):
        digit_features(normal(3), model)
    assert model.training


def test_default_classifier_is_chosen_by_size(monkeypatch):
    names = []

    def load_pretrained(name):
        names.append(name)
        return TinyClassifier()

    fake = types.SimpleNamespace(load_pretrained=load_pretrained)
    monkeypatch.setitem(sys.modules, "course_lib.pretrained", fake)
    assert digit_features(normal(2, 1, 8, 8)).shape == (2, 4)
    assert digit_logits(normal(2, 1, 28, 28)).shape == (2, 4)
    assert names == [features._CLASSIFIERS[8], features._CLASSIFIERS[28]]
    # 32x32 is MNIST within a border of background, which the classifier does not see.
    images = normal(2, 1, 28, 28)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-1.0).float()
    for function in (digit_features, digit_logits):
        assert torch.equal(function(padded), function(images))
    assert set(names[2:]) == {features._CLASSIFIERS[28]}
    # A classifier that is given sees the images as they are.
    seen = digit_features(padded, TinyClassifier())
    assert torch.equal(seen, nn.functional.adaptive_avg_pool2d(padded, 2).flatten(1))


def test_pretrained_classifier_on_real_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    assert class_agreement(digit_logits(images), torch.tensor(data.target)) > 0.95
    # Halves of one set are close; the same digits upside down are not.
    features = digit_features(images)
    upside_down = digit_features(images.flip(2))
    near = frechet_distance(features[::2], features[1::2])
    assert frechet_distance(features, upside_down) > 10 * near


@pytest.mark.parametrize(
    "shape", [(2, 1, 16, 16), (2, 3, 8, 8), (2, 3, 32, 32), (2, 1, 28, 8), (2, 1, 28, 32), (2, 8)]
)
def test_no_default_classifier_for_other_shapes(shape):
    with pytest.raises(ValueError, match=rf"got {re.escape(str(shape))}; pass a classifier"):
        digit_features(normal(*shape))


def test_class_agreement_counts():
    logits = double([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 1.0, 5.0]])
    assert class_agreement(logits, torch.tensor([0, 1, 2, 2])) == 0.75


@pytest.mark.parametrize(
    ("logits", "labels"), [((4, 3), (3,)), ((4,), (4,)), ((0, 3), (0,)), ((4, 3), (4, 1))]
)
def test_class_agreement_checks_shapes(logits, labels):
    with pytest.raises(ValueError, match="logits must have shape"):
        class_agreement(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))
