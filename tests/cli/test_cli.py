import csv
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from course_lib import cli
from course_lib.cli import commands
from course_lib.cli.parsing import with_plain_names

STEPS = ["--fit.progress", "false", "--model.init_args.width", "4", "--steps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ddpm_cats"], "recipe must be one of classifier_digits"),
        (["train", "classifier_digits", *STEPS, "0"], "steps must be at least 1; got 0"),
        (["train", "classifier_digits", *STEPS, "many"], "steps"),
        (["train", "classifier_digits", "--fit.steps", "many"], "fit.steps"),
        (["train", "classifier_digits", "--nonsense", "1"], "nonsense"),
        (["train", "classifier_digits", "--precision", "7"], "precision"),
        (["train", "classifier_digits", *STEPS, "1", "--strategy", "magic"], "strategy='magic'"),
        (["train", "classifier_digits", *STEPS, "1", "--devices", "0"], "devices=0"),
        (["train", "classifier_digits", "--patch-size", "2"], "has no network with patches"),
        (["train", "classifier_digits", "--sample-every", "2"], "sample_every must be 0 for a Dig"),
        (["train", "classifier_digits", "--channels", "2"], "channels must be 1 or 3; got 2"),
        (["train", "classifier_digits", "--image-size", "0"], "image_size must be at least"),
        (["train", "ddpm_digits", "--steps", "9", "--epochs", "9"], "--epochs and --steps exclude"),
        (["train", "ddpm_digits", "--epochs", "0"], "--epochs must be positive; got 0"),
        (["train"], "name a recipe first, one of classifier_digits"),
        (["train", "--steps", "3"], "name a recipe first"),
        (["sample"], "checkpoint"),
        (["sample", "--checkpoint", "cats"], "checkpoint must be one of "),
        (["sample", "--checkpoint", "no/such.safetensors"], "that exists; got 'no/such.safe"),
        (["sample", "--checkpoint", ".", "--output", "a.jpg"], "--output must end with .png"),
        (["sample", "--checkpoint", "."], "holds neither weights nor a checkpoint"),
        (["sample", "--checkpoint", ".", "--solver", "magic"], "magic"),
        (["evaluate", "--checkpoint", "cats"], "checkpoint must be one of"),
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


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("course_lib.check.progress", interrupted)
    assert cli.main(["progress"]) == 130
    assert capsys.readouterr().err == "course-lib: interrupted\n"


def shown_help(capsys, *arguments):
    with pytest.raises(SystemExit) as leave:
        cli.main([*arguments, "--help"])
    assert leave.value.code == 0
    return capsys.readouterr().out


def examples(text):
    """The commands that a help shows, as lists of arguments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  course-lib ")]


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_has_examples_that_are_understood(command, capsys):
    found = examples(shown_help(capsys, command))
    assert found
    for arguments in found:
        plain = with_plain_names(arguments)
        assert commands._parser(plain).parse_args(plain).subcommand == command


def test_commands_of_the_page_beyond_one_machine_are_understood():
    page = Path(__file__).parents[2] / "book" / "beyond_one_machine.md"
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(?:srun |torchrun .*)?course-lib (.*)$", text, re.MULTILINE)
    strategies, others = [], []
    for line in found:
        plain = with_plain_names(shlex.split(line, comments=True))
        config = commands._parser(plain).parse_args(plain)
        if config.subcommand == "train":
            strategies.append(config.train.strategy)
        else:
            others.append(config.subcommand)
    assert strategies == ["ddp"] * 5 + ["fsdp", "ddp", None]
    assert others == ["encode", "sample"]


def test_help_names_the_commands_and_the_recipes(capsys):
    text = shown_help(capsys)
    assert all(f"    {name} " in text for name in commands.COMMANDS)
    text = shown_help(capsys, "train")
    assert "ddpm_mnist" in text
    assert "type:" not in text
    assert "Identity" not in text  # one of the thousand modules of PyTorch
    text = shown_help(capsys, "train", "classifier_digits")
    assert "(required, default: 1500)" in text  # the recipe's own


def test_hyphens_and_underscores_mean_the_same():
    given = ["train", "--save_every", "1", "--fit.batch-size=a-b_c", "-h", "a_b-c", "--x-y=--q_r"]
    wanted = ["train", "--save-every", "1", "--fit.batch_size=a-b_c", "-h", "a_b-c", "--x-y=--q_r"]
    assert with_plain_names(given) == wanted


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


def test_runs_as_a_module(monkeypatch):
    monkeypatch.setattr("sys.argv", ["course-lib", "fly"])
    with pytest.raises(SystemExit) as leave:
        runpy.run_module("course_lib.cli", run_name="__main__")
    assert leave.value.code == 2
