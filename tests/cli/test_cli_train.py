import json
import signal
import subprocess

import pytest

from course_lib import cli, pretrained
from course_lib.cli import commands, train
from course_lib.cli.overrides import apply_flags
from course_lib.cli.parsing import with_plain_names
from course_lib.training.batches import Batches
from course_lib.training.checkpoints import newest

QUICK = ["--progress", "false", "--model.init_args.width", "4", "--steps"]


def test_train_saves_weights_with_manifest_and_goes_on_where_it_stopped(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["train", "classifier_digits", *QUICK, "30", "--save-dir", str(tmp_path)]
    assert cli.main(command) == 0
    assert "test_accuracy" in capsys.readouterr().out
    info = pretrained.pretrained_info("classifier_digits", tmp_path)
    assert (info["recipe"], info["seed"], info["steps"]) == ("classifier_digits", 0, 30)
    assert 0 <= info["metrics"]["test_accuracy"] <= 1
    assert info["model"]["init_args"]["width"] == 4
    assert info["images"] == {"data": "digits", "image_size": None, "channels": 1, "labels": True}
    model = pretrained.load_pretrained("classifier_digits", tmp_path)
    assert model.convolutions[0].out_channels == 4

    first = (tmp_path / "manifest.json").read_bytes()
    assert cli.main(command) == 0  # all steps are done: nothing changes
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_runs_is_the_default_folder_and_output_may_be_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "classifier_digits", *QUICK, "1", "--output", "weights"]) == 0
    assert newest(tmp_path / "runs/classifier_digits")
    manifest = json.loads((tmp_path / "weights/manifest.json").read_text())
    assert list(manifest) == ["classifier_digits"]


def digest(folder):
    (info,) = json.loads((folder / "manifest.json").read_text()).values()
    return info["sha256"]


def test_killed_run_loses_at_most_an_interval_and_ends_with_the_same_bits(
    tiny, trained, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    draw, steps = Batches.batch, []

    def killed(self, step, *where):
        steps.append(step)
        if len(steps) == 10:
            raise Killed
        return draw(self, step, *where)

    monkeypatch.setattr(Batches, "batch", killed)
    command = ["train", tiny, "--save-dir", str(tmp_path), "--sample-every", "4"]
    with pytest.raises(Killed):
        cli.main(command)
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert steps == [*range(10), *range(5, 12)]  # the recipe saves every 5 steps
    assert digest(tmp_path) == digest(trained)
    other = tmp_path / "other"
    assert cli.main(["train", tiny, "--save-dir", str(other), "--seed", "1"]) == 0
    assert digest(other) != digest(trained)


def test_checkpoint_of_another_recipe_is_refused_and_kept(trained, capsys):
    before = newest(trained).read_bytes()
    assert cli.main(["train", "classifier_digits", "--save-dir", str(trained)]) == 2
    err = capsys.readouterr().err
    assert "of another run: model is 'DigitClassifier" in err
    assert "--resume false" in err
    assert err.count("\n") == 1
    assert newest(trained).read_bytes() == before


def test_resume_false_starts_anew(tiny, tmp_path):
    command = ["train", tiny, "--save-dir", str(tmp_path), "--steps", "2"]
    assert cli.main([*command, "--lr", "0.1"]) == 0
    first = digest(tmp_path)
    assert cli.main(command) == 2
    assert cli.main([*command, "--resume", "false"]) == 0
    assert digest(tmp_path) != first


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


def configured(*arguments):
    """The recipe after the flags."""
    plain = with_plain_names(["train", *arguments])
    config = commands._parser(plain).parse_args(plain).train
    apply_flags(config)
    return config


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--steps 7", "fit.steps", 7),
        ("--fit.steps 8", "fit.steps", 8),
        ("--epochs 2", "fit.steps", 188),  # 3,000 examples in batches of 16
        ("--epochs 0.1 --batch-size 64", "fit.steps", 3),
        ("--batch_size 5", "fit.batch_size", 5),
        ("--lr 3e-4", "fit.lr", 3e-4),
        ("--lr-schedule cosine", "fit.lr_schedule", "cosine"),
        ("--lr-step 5", "fit.lr_schedule", "step"),
        ("--lr-step 5", "fit.lr_step", 5),
        ("--lr-gamma 0.5", "fit.lr_schedule", "step"),
        ("--lr-gamma 0.5", "fit.lr_gamma", 0.5),
        ("--lr-gamma 0.5 --lr-schedule constant", "fit.lr_schedule", "constant"),
        ("--seed 3", "fit.seed", 3),
        ("--save-dir a/b", "fit.checkpoint", "a/b"),
        ("--save-every 9", "fit.save_every", 9),
        ("--resume false", "fit.resume", False),
        ("--resume auto", "fit.resume", "auto"),
        ("--logger csv", "fit.logger", "csv"),
        ("--progress true", "fit.progress", True),
        ("--precision bf16-mixed", "fit.trainer_options", {"precision": "bf16-mixed"}),
        ("--devices 2 --strategy ddp", "fit.trainer_options", {"devices": 2, "strategy": "ddp"}),
        ("--devices auto", "fit.trainer_options", {"devices": "auto"}),
        (
            "--num-nodes 3 --accelerator cpu",
            "fit.trainer_options",
            {"num_nodes": 3, "accelerator": "cpu"},
        ),
        ("--image-size 16", "image_size", 16),
        ("--image-size 16", "model.init_args.net.init_args.image_size", 16),
        ("--channels 3", "channels", 3),
        ("--channels 3", "model.init_args.net.init_args.channels", 3),
        ("--patch-size 4", "model.init_args.net.init_args.patch", 4),
        ("--model.init-args.net.init-args.depth 2", "model.init_args.net.init_args.depth", 2),
        ("--sample-every 3", "sample_every", 3),
        ("--scale 2", "scale", 2.0),
        ("--fit.ema 0.5", "fit.ema", 0.5),
    ],
)
def test_flags_set_fields_of_the_recipe(tiny, flags, field, value):
    if value not in ("auto", "constant"):  # which are the defaults
        assert configured(tiny)[field] != value
    assert configured(tiny, *flags.split())[field] == value


def test_without_flags_the_recipe_is_as_it_was(tiny):
    config = configured(tiny)
    assert config.fit.trainer_options is None
    assert (config.fit.steps, config.fit.batch_size, config.fit.ema) == (12, 16, 0.9)
    assert config.model.init_args.net.init_args.image_size == 8


def test_machine_flags_join_what_the_recipe_says(tiny):
    options = '{"precision": "bf16-mixed", "devices": 4}'
    config = configured(tiny, "--fit.trainer_options", options, "--devices", "2")
    assert config.fit.trainer_options == {"precision": "bf16-mixed", "devices": 2}


def test_another_size_trains_draws_and_is_measured(tiny, tmp_path, capsys):
    command = ["train", tiny, "--save-dir", str(tmp_path), "--steps", "2", "--sample-every", "2"]
    command += ["--image-size", "12", "--channels", "3", "--patch-size", "3", "--scale", "2"]
    assert cli.main(command) == 0
    info = pretrained.pretrained_info("tiny", tmp_path)
    assert info["model"]["init_args"]["net"]["init_args"]["image_size"] == 12
    assert info["images"] == {"data": "digits", "image_size": 12, "channels": 3, "labels": True}
    assert (info["metrics"]["scale"], info["metrics"]["evaluations"]) == (2.0, 40.0)
    assert info["metrics"]["frechet_ratio"] > 1
    assert (tmp_path / "samples" / "step-000000002.png").is_file()


def test_only_the_first_process_saves(tiny, tmp_path, monkeypatch, capsys):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(train, "train_recipe", lambda *_, **__: None)
    assert cli.main(["train", tiny, "--save-dir", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


def test_commit_is_that_of_the_repository_or_none(monkeypatch):
    assert train.commit() is None or len(train.commit()) == 40

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert train.commit() is None
