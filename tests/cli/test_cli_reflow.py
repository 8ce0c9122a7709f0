"""Recipes with a teacher: reflow on the command line, of points."""

import json
import re

import pytest
import torch

from course_lib import cli, pretrained

MODEL = """
model:
  class_path: course_lib.denoisers.NetDenoiser
  init_args:
    net: {class_path: course_lib.nets.mlp.MLP, init_args: {dim: 2, width: 8, num_classes: 8}}
    path: {class_path: course_lib.paths.Linear}
    predicts: velocity
data: eight_gaussians
labels: true
"""
BASE = """
fit:
  objective: {class_path: course_lib.objectives.ConditionDropout, init_args: {p: 0.2}}
  steps: 4
  batch_size: 16
  progress: false
"""
REFLOW = """
teacher_scale: 1.5
teacher_steps: 3
pairs: 250
fit: {objective: course_lib.transport.reflow_loss, steps: 4, batch_size: 16, progress: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recipes, and a run of the first."""
    folder = tmp_path_factory.mktemp("reflow")
    (folder / "base.yaml").write_text(MODEL + BASE)
    (folder / "reflow.yaml").write_text(MODEL + REFLOW)
    assert cli.main(["train", str(folder / "base.yaml"), "--save-dir", str(folder / "base")]) == 0
    return folder


def train(folder, to, *options):
    recipe, out = str(folder / "reflow.yaml"), str(to)
    return cli.main(["train", recipe, "--save-dir", out, *options])


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    to = tmp_path_factory.mktemp("run")
    assert train(folder, to, "--teacher", str(folder / "base")) == 0
    return to


def test_student_begins_with_its_teacher_and_learns_from_its_pairs(folder, run):
    teacher = pretrained.load_pretrained("base", folder / "base")
    student = pretrained.load_pretrained("reflow", run)
    gaps = [
        float((a - b).abs().max())
        for a, b in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    assert 0 < max(gaps) < 0.02  # four steps of Adam at 1e-3, and half precision
    kept = json.loads((run / "round_1" / "pairs" / "pairs.json").read_text())
    assert (kept["n"], kept["steps"], kept["solver"]) == (250, 3, "dpm_solver_pp_2m")
    assert kept["weights"].startswith("ClassifierFreeGuidance")


def test_pairs_are_kept_and_the_run_gives_the_same_again(folder, run, tmp_path, monkeypatch):
    (tmp_path / "round_1").mkdir()
    (run / "round_1" / "pairs").rename(tmp_path / "round_1" / "pairs")
    monkeypatch.setattr(
        "course_lib.transport.reflow.Pairs", lambda *a: pytest.fail("pairs were made again")
    )
    assert train(folder, tmp_path, "--teacher", str(folder / "base")) == 0
    first, again = (pretrained.load_pretrained("reflow", f).state_dict() for f in (run, tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pairs need a teacher that makes them: --teacher NAME"),
        (["--teacher", "nobody"], "checkpoint must be one of"),
        (["--teacher", "mnist-classifier"], "holds a DigitClassifier, which draws nothing"),
        (["--teacher", "digits-flow"], r"teacher digits-flow has samples of shape \(1, 8, 8\)"),
        (["--teacher", "BASE", "--pairs", "-1"], "pairs must be at least 0; got -1"),
        (
            ["--teacher", "BASE", "--model.init_args.net.init_args.width", "10"],
            "the model must be built like its teacher",
        ),
        (
            ["--teacher", "BASE", "--model.init_args.path", "course_lib.paths.VP"],
            "base must be on the path Linear",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, capsys, options, message):
    options = [str(folder / "base") if o == "BASE" else o for o in options]
    assert train(folder, tmp_path, *options) != 0
    assert re.search(message, capsys.readouterr().err)


def test_guidance_of_the_teacher_needs_labels(folder, tmp_path, capsys):
    options = ["--teacher", "digits-flow", "--data", "digits", "--labels", "false"]
    assert train(folder, tmp_path, *options) != 0
    assert "teacher_scale must be 1 without labels; got 1.5" in capsys.readouterr().err
