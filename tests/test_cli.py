import csv
import io
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
        (["grade"], "notebooks"),
        (["grade", "none.ipynb"], "there is no notebook 'none.ipynb'"),
        (["grade", __file__, "--timeout", "0"], "timeout must be positive"),
        (["grade", __file__, "--memory", "much"], "memory"),
        (["grade", __file__, "--chapter", "cats"], "cats"),
        (["grade", __file__, "--csv", __file__], "exists: name another file with --csv"),
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


EULER = "def ve_euler_step(x, s, s_next, score):\n    return x + (s - s_next) * s * score"


def test_grade_writes_a_table_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [{"cell_type": "code", "source": EULER}]
    (tmp_path / "good.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    (tmp_path / "bad.ipynb").write_text("no notebook")
    assert cli.main(["grade", "*.ipynb"]) == 1
    out, err = capsys.readouterr()
    assert "bad.ipynb: not read: the file is not JSON" in out
    assert "2 of 2 notebooks: grades.csv" in out
    assert err == ""
    with open("grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["result"] for row in rows if row["exercise"] == "ve_euler_step"} == {"passed"}
    assert rows[0]["notebook"] == "bad.ipynb"
    before = (tmp_path / "grades.csv").read_bytes()
    assert cli.main(["grade", "good.ipynb"]) == 2
    assert "grades.csv exists" in capsys.readouterr().err
    assert (tmp_path / "grades.csv").read_bytes() == before


def test_grade_interrupted_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    from course_lib.check import grading

    def one(notebook, *_):
        if notebook == "c.ipynb":
            raise KeyboardInterrupt
        return grading.Graded(notebook, [grading.Grade("ddpm", "q_sample", "T", "passed", "")])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grading, "grade_notebook", one)
    for name in "abcd":
        (tmp_path / f"{name}.ipynb").touch()
    (tmp_path / "g.csv").write_text("old")
    assert cli.main(["grade", "?.ipynb", "--csv", "g.csv", "--force"]) == 130
    assert "2 of 4 notebooks (interrupted): g.csv" in capsys.readouterr().out
    assert (tmp_path / "g.csv").read_bytes().count(b"\n") == 3
    assert cli.main(["grade", "a.ipynb", "b.ipynb", "--csv", "new/g.csv"]) == 0


def test_progress_is_shown_also_by_a_plain_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    assert cli.main(["progress"]) == 0
    assert "Next: " in capsys.readouterr().out
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["progress"]) == 0


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
