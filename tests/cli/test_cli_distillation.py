"""Distillation on the command line, of points: recipes with a teacher, and without."""

import re

import pytest

from course_lib import cli, pretrained
from course_lib.distillation import IntervalDenoiser, mean_flow
from course_lib.samplers import sample
from course_lib.training.recipe import recipe_parser, recipe_path, recipes

MODEL = """
model:
  class_path: course_lib.denoisers.NetDenoiser
  init_args:
    net: {class_path: course_lib.nets.mlp.MLP, init_args: {dim: 2, width: 8, num_classes: 8}}
    path: {class_path: course_lib.paths.Linear}
    predicts: velocity
data: eight_gaussians
labels: true
solver: ddim
solver_steps: 1
fit:
  steps: 4
  batch_size: 16
  progress: false
  objective: {class_path: OBJECTIVE, init_args: {ARGS}}
"""
MEAN = MODEL.replace("denoisers.NetDenoiser", "distillation.IntervalDenoiser").replace(
    "    predicts: velocity\n", ""
).replace("solver: ddim", "solver: mean_flow")  # fmt: skip
RECIPES = {
    "base": (MODEL, "objectives.ConditionDropout", "p: 0.2"),
    "distillation": (MODEL, "distillation.ConsistencyDistillation", "segments: 3"),
    "training": (MODEL, "distillation.ConsistencyTraining", "segments: [2, 4]"),
    "progressive": ("stages: [4, 2, 1]" + MODEL, "distillation.ProgressiveLoss", ""),
    "meanflow": (MEAN, "distillation.MeanFlowLoss", "instant: 0.5"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recipes, and a run of the first."""
    folder = tmp_path_factory.mktemp("distillation")
    for name, (text, objective, args) in RECIPES.items():
        text = text.replace("OBJECTIVE", f"course_lib.{objective}").replace("ARGS", args)
        (folder / f"{name}.yaml").write_text(text)
    assert train(folder, "base", folder / "base") == 0
    return folder


def train(folder, name, to, *options):
    return cli.main(["train", str(folder / f"{name}.yaml"), "--save-dir", str(to), *options])


def teacher(folder, scale="1.5"):
    return ["--teacher", str(folder / "base"), "--teacher-scale", scale]


def largest_change(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


@pytest.mark.parametrize("name", ["distillation", "progressive", "training"])
def test_a_student_begins_with_its_teacher(folder, tmp_path, name):
    assert train(folder, name, tmp_path, *teacher(folder)) == 0
    base = pretrained.load_pretrained("base", folder / "base")
    student = pretrained.load_pretrained(name, tmp_path)
    assert 0 < largest_change(base, student) < 0.05  # at most 12 steps of Adam at 1e-3
    info = pretrained.pretrained_info(name, tmp_path)
    assert (info["metrics"]["solver"], info["metrics"]["evaluations"]) == ("ddim", 1)


def test_guidance_of_the_teacher_is_distilled(folder, tmp_path):
    for scale in ("1", "3"):
        to = tmp_path / scale
        assert train(folder, "distillation", to, *teacher(folder, scale)) == 0
    models = [pretrained.load_pretrained("distillation", tmp_path / s) for s in ("1", "3")]
    assert largest_change(*models) > 0


def test_stages_are_kept_and_the_run_gives_the_same_again(folder, tmp_path, capsys):
    to = tmp_path / "run"
    assert train(folder, "progressive", to, *teacher(folder)) == 0
    assert sorted(p.name for p in to.glob("steps_*")) == ["steps_01", "steps_02", "steps_04"]
    first = pretrained.load_pretrained("progressive", to)
    assert train(folder, "progressive", to, *teacher(folder)) == 0  # nothing is left to train
    assert largest_change(first, pretrained.load_pretrained("progressive", to)) == 0
    assert train(folder, "progressive", to, *teacher(folder, "2")) == 2
    assert "is of another run: objective is" in capsys.readouterr().err


def test_an_objective_in_another_gets_the_teacher(folder, tmp_path):
    inner = "{class_path: course_lib.distillation.ConsistencyDistillation}"
    text = (folder / "base.yaml").read_text().replace("p: 0.2", f"p: 0.2, objective: {inner}")
    (tmp_path / "wrapped.yaml").write_text(text)
    assert train(tmp_path, "wrapped", tmp_path / "run", *teacher(folder)) == 0


@pytest.mark.parametrize("with_teacher", [False, True])
def test_mean_flow(folder, tmp_path, with_teacher):
    options = teacher(folder, "1") if with_teacher else []
    assert train(folder, "meanflow", tmp_path, *options) == 0
    model = pretrained.load_pretrained("meanflow", tmp_path)
    assert isinstance(model, IntervalDenoiser)
    info = pretrained.pretrained_info("meanflow", tmp_path)["metrics"]
    assert (info["solver"], info["evaluations"]) == ("mean_flow", 1)
    assert sample(model, (5, 2), solver=mean_flow, steps=2).isfinite().all()
    if with_teacher:
        base = pretrained.load_pretrained("base", folder / "base")
        gap = (model.net.condition.inner.time[0].weight - base.net.condition.time[0].weight).abs()
        assert gap.max() < 0.02


@pytest.mark.parametrize("solver", ["ddim", "consistency"])
def test_sample_and_evaluate(folder, tmp_path, capsys, solver):
    run, picture = tmp_path / "run", tmp_path / "points.png"
    assert train(folder, "distillation", run, *teacher(folder)) == 0
    how = ["--checkpoint", str(run), "--solver", solver, "--steps", "2"]
    assert cli.main(["sample", *how, "--num-samples", "20", "--output", str(picture)]) == 0
    assert picture.is_file()
    capsys.readouterr()
    assert cli.main(["evaluate", *how, "--num-samples", "20"]) == 0
    assert re.search(r"evaluations\W+2", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("distillation", [], "ConsistencyDistillation needs a teacher: --teacher NAME"),
        ("progressive", [], "ProgressiveLoss needs a teacher: --teacher NAME"),
        ("base", ["--stages", "[2, 1]"], "stages need a --teacher, and the objective Progressive"),
        ("progressive", ["BASE", "--stages", "[3, 1]"], "stages must halve"),
        ("meanflow", ["BASE", "--scale", "2"], "solver mean_flow knows no guidance"),
        ("distillation", ["BASE", "--solver", "mean_flow"], "mean_flow needs an IntervalDenoiser"),
        (
            "meanflow",
            ["BASE", "--model.init_args.net.init_args.width", "10"],
            "the model must be built like its teacher",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, capsys, name, options, message):
    if options[:1] == ["BASE"]:
        options = [*teacher(folder, "1"), *options[1:]]
    assert train(folder, name, tmp_path, *options) != 0
    assert message in capsys.readouterr().err


DISTILLED = [n for n in recipes() if n.startswith(("consistency", "progressive", "meanflow"))]


def test_recipes_are_there():
    assert len(DISTILLED) == 7


@pytest.mark.parametrize("name", DISTILLED)
def test_recipes_are_read(name):
    config = recipe_parser(recipe_path(name)).parse_args([])
    assert config.solver_steps == 1
    assert config.fit.objective
