import json

import pytest
import torch

from course_lib import cli, pretrained
from course_lib.cli import measuring
from course_lib.denoisers import GaussianMixture
from course_lib.evaluation.features import class_agreement, digit_logits
from course_lib.nets.noisy_classifier import NoisyDigitClassifier
from course_lib.paths import VP, Linear
from course_lib.training.recipe import recipe_data


def test_evaluate_finds_what_the_manifest_says(trained, tmp_path, capsys):
    path = tmp_path / "metrics.json"
    assert cli.main(["evaluate", "--checkpoint", str(trained), "--output", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found.pop("checkpoint") == str(trained)
    assert found.pop("seconds") > 0
    assert found == pretrained.pretrained_info("tiny", trained)["metrics"]
    assert found["frechet_ratio"] == pytest.approx(
        found["frechet_test"] / found["frechet_floor"], abs=1e-3
    )
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(lines["class_agreement"]) == found["class_agreement"]


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ("", 20),
        ("--steps 3", 3),
        ("--scale 2", 40),
        ("--solver heun --steps 3 --scale 2", 10),  # the last step of heun is one of euler
    ],
)
def test_evaluations_of_the_network_are_counted(trained, options, evaluations, capsys):
    command = ["evaluate", "--checkpoint", str(trained), "--num-samples", "3", *options.split()]
    assert cli.main(command) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(lines["evaluations"]) == evaluations
    assert lines["samples"] == "3"


def test_seed_decides_the_samples(trained, capsys):
    found = []
    for seed in ("0", "0", "1"):
        command = ["evaluate", "--checkpoint", str(trained), "--num-samples", "9", "--seed", seed]
        assert cli.main(command) == 0
        found.append(capsys.readouterr().out.split("seconds")[0])
    assert found[0] == found[1] != found[2]


EXACT = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1), Linear())


def draws(monkeypatch, images):
    """Let the samples be these images; returns what was asked for."""
    asked = {}

    def draw(model, shape, n, **options):
        assert images.shape[1:] == shape
        asked.update(options)
        return images[:n]

    monkeypatch.setattr(measuring, "draw_samples", draw)
    return asked


@pytest.mark.parametrize("form", [{}, {"image_size": 16, "channels": 3}])
def test_training_images_are_as_good_as_the_floor_says(monkeypatch, form):
    draws(monkeypatch, recipe_data("digits", "train", **form)[0])
    metrics = cli.measure(EXACT, cli.SampleSpace("digits", **form), n=100)
    assert metrics["samples"] == 100
    assert metrics["frechet_test"] == metrics["frechet_floor"] > 0
    assert metrics["frechet_ratio"] == 1
    assert "class_agreement" not in metrics


def test_test_images_are_at_no_distance_and_agree_with_their_labels(monkeypatch):
    images, labels = recipe_data("digits", "test")
    asked = draws(monkeypatch, images)
    space = cli.SampleSpace("digits", labels=True)
    metrics = cli.measure(EXACT, space, scale=3.0, solver="ddim", steps=7, seed=2)
    assert torch.equal(asked["labels"], labels)
    assert (asked["scale"], asked["solver"], asked["steps"], asked["seed"]) == (3.0, "ddim", 7, 2)
    assert metrics["samples"] == len(images)  # fewer than 2,000
    assert metrics["frechet_test"] == pytest.approx(0, abs=1e-3)
    accuracy = class_agreement(digit_logits(images), labels)
    assert metrics["class_agreement"] == pytest.approx(accuracy, abs=1e-4)
    assert accuracy > 0.9
    draws(monkeypatch, images.flip(0))
    assert cli.measure(EXACT, space)["class_agreement"] < 0.5


def test_scale_needs_labels():
    with pytest.raises(ValueError, match=r"scale must be 1 for a model without labels; got 2\.0"):
        cli.measure(EXACT, cli.SampleSpace("digits"), scale=2.0)


def test_samples_that_are_not_finite_are_not_measured(monkeypatch):
    draws(monkeypatch, torch.full((9, 1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="samples are not finite: try more steps"):
        cli.measure(EXACT, cli.SampleSpace("digits"), n=9)


def test_images_of_mnist_are_seen_in_their_own_size():
    """Of 32x32 images the frame is cut off by the classifier itself; other sizes are resized."""
    for size, seen in ((28, 28), (32, 32), (16, 28)):
        assert measuring._seen(torch.zeros(2, 3, size, size), "mnist").shape == (2, 1, seen, seen)
    assert measuring._seen(torch.zeros(2, 1, 32, 32), "digits").shape == (2, 1, 8, 8)


def test_classifiers_are_measured_by_their_accuracy(monkeypatch):
    """A classifier of noisy images that looks up the nearest test image is right until late."""
    images, labels = recipe_data("digits", "test")
    classifier = NoisyDigitClassifier(8, VP())
    seen = []

    def nearest(xt, t):
        seen.append(float(t[0]))
        scaled = VP().alpha(t)[:, None] * images.flatten(1)
        rows = torch.cdist(xt.flatten(1), scaled).argmin(1)
        return torch.nn.functional.one_hot(labels[rows], 10)

    monkeypatch.setattr(classifier, "forward", nearest)
    found = cli.measure(classifier, cli.SampleSpace("digits"))
    assert seen == [0, 0.25, 0.5, 0.75]
    assert found["test_accuracy"] == 1
    assert found["test_accuracy_at_0.25"] > 0.9
    assert found["test_accuracy_at_0.5"] > found["test_accuracy_at_0.75"] < 0.5


def test_evaluate_prints_the_accuracy_of_a_classifier(tmp_path, capsys):
    command = ["train", "classifier_digits", "--steps", "2", "--progress", "false"]
    assert cli.main([*command, "--save-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path)]) == 0
    metrics = pretrained.pretrained_info("classifier_digits", tmp_path)["metrics"]
    assert capsys.readouterr().out.split() == ["test_accuracy", str(metrics["test_accuracy"])]
