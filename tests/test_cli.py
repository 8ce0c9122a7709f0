import json
import runpy
import signal
import subprocess
import sys

import pytest
import torch

from course_lib import cli, pretrained
from course_lib.denoisers import GaussianMixture
from course_lib.paths import Linear
from course_lib.training.batches import Batches

QUICK = ["--fit.progress", "false", "--model.init_args.width", "4", "--fit.steps"]


def test_train_saves_weights_with_manifest_and_goes_on_where_it_stopped(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["train", "classifier_digits", *QUICK, "30", "--output", str(tmp_path)]
    assert cli.main(command) == 0
    assert "test_accuracy" in capsys.readouterr().out
    info = pretrained.pretrained_info("classifier_digits", tmp_path)
    assert (info["recipe"], info["seed"], info["steps"]) == ("classifier_digits", 0, 30)
    assert 0 <= info["metrics"]["test_accuracy"] <= 1
    assert info["model"]["init_args"]["width"] == 4
    model = pretrained.load_pretrained("classifier_digits", tmp_path)
    assert model.convolutions[0].out_channels == 4

    first = (tmp_path / "manifest.json").read_bytes()
    assert cli.main(command) == 0  # all steps are done: nothing changes
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_output_is_in_runs_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "classifier_digits", *QUICK, "1"]) == 0
    manifest = json.loads((tmp_path / "runs/classifier_digits/manifest.json").read_text())
    assert list(manifest) == ["classifier_digits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ddpm_cats"], "recipe must be one of classifier_digits"),
        (["train", "classifier_digits", *QUICK, "0"], "steps must be at least 1; got 0"),
        (["train", "classifier_digits", *QUICK, "many"], "fit.steps"),
        (["train", "classifier_digits", "--nonsense", "1"], "nonsense"),
        (["train"], "recipe"),
        (["fly"], "fly"),
        ([], "subcommand"),
    ],
)
def test_errors_take_one_line_and_exit_with_two(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("course-lib: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_interrupted_training_saves_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = Batches.batch

    def interrupted(self, step, *where):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return draw(self, step, *where)

    command = ["train", "classifier_digits", *QUICK, "20"]
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", interrupted)
        with pytest.warns(UserWarning, match="interrupted after step 5 of 20"):
            assert cli.main(command) == 2
    assert "interrupted before the last step" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert cli.main(command) == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["train", "--help"])
    assert leave.value.code == 0
    assert "ddpm_mnist" in capsys.readouterr().out


def test_denoisers_are_measured_beside_the_floor(monkeypatch):
    """Samples of the training images themselves are as good as the floor says."""
    from course_lib import samplers
    from course_lib.training.recipe import recipe_data

    train = recipe_data("digits", "train")[0]
    monkeypatch.setattr(samplers, "sample", lambda model, shape, **_: train[: shape[0]])
    exact = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1), Linear())
    metrics = cli.measure(exact, "digits", n=100)
    assert metrics["samples"] == 100
    assert metrics["frechet_test"] == metrics["frechet_floor"] > 0


def test_commit_is_that_of_the_repository_or_none(monkeypatch):
    assert cli._commit() is None or len(cli._commit()) == 40

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert cli._commit() is None


def test_runs_as_a_module(monkeypatch):
    monkeypatch.setattr("sys.argv", ["course-lib", "fly"])
    monkeypatch.delitem(sys.modules, "course_lib.cli")
    with pytest.raises(SystemExit) as leave:
        runpy.run_module("course_lib.cli", run_name="__main__")
    assert leave.value.code == 2
