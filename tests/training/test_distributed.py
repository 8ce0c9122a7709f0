"""Two processes on the CPU (gloo) train to the same result as one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_lib.cli import main, train_recipe
from course_lib.training.checkpoints import averaged_weights, newest
from course_lib.training.recipe import recipe_parser

TOLERANCE = 1e-5


def weights(folder):
    return averaged_weights(newest(folder))[0]


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory):
    """Folder of what two processes have trained."""
    folder = tmp_path_factory.mktemp("together")
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, script, tiny, folder], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert done.stdout.count("tiny.safetensors: {") == 3  # the first process alone speaks
    return folder


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """Train in this process; called with flags."""

    def run(*flags):
        folder = tmp_path_factory.mktemp("alone")
        assert main(["train", tiny, "--save-dir", str(folder), *flags]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def reference(alone):
    return alone("--sample-every", "6")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy, together, reference):
    assert newest(together / strategy).name == newest(reference).name == "step-000000012.ckpt"
    assert distance(weights(together / strategy), weights(reference)) < TOLERANCE


@pytest.mark.parametrize(("strategy", "lost"), [("interrupted", ""), ("fsdp", "step-000000012*")])
def test_what_two_processes_began_one_ends(strategy, lost, together, tiny, reference, tmp_path):
    folder = shutil.copytree(together / strategy, tmp_path / "run")
    for path in folder.glob(lost) if lost else ():
        path.unlink()
    assert newest(folder).name in ("step-000000005.ckpt", "step-000000010.ckpt")
    assert main(["train", tiny, "--save-dir", str(folder)]) == 0
    assert distance(weights(folder), weights(reference)) < TOLERANCE


@pytest.mark.parametrize("flags", [("--seed", "1"), ("--batch-size", "8"), ("--batch-size", "32")])
def test_the_tolerance_tells_another_seed_and_another_batch(flags, alone, reference):
    """If each process drew noise of its own, or saw the whole batch, this is how it would show."""
    assert distance(weights(alone(*flags)), weights(reference)) > 100 * TOLERANCE


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_first_process_shows_samples(strategy, together, reference):
    names = ["step-000000006.png", "step-000000012.png"]
    for folder in (together / strategy, reference):
        assert [path.name for path in sorted((folder / "samples").iterdir())] == names


@pytest.fixture
def _no_trace():
    """Leave no process group behind, and none of the variables that describe it."""
    before = dict(os.environ)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("_no_trace")
def test_split_weights_come_back_whole(tiny, tmp_path):
    """Split over one process, to the last bit; also when samples are drawn in between."""
    config = recipe_parser(Path(tiny)).parse_args(["--sample-every", "2"])
    options = {"strategy": "fsdp", "accelerator": "cpu"}
    split = train_recipe(config, trainer_options=options, checkpoint=tmp_path)
    whole = train_recipe(config, checkpoint=tmp_path / "whole")
    assert type(split) is type(whole)
    assert torch.equal(split.losses, whole.losses)
    for mine, other in zip(split.parameters(), whole.parameters(), strict=True):
        assert type(mine) is type(other)
        assert torch.equal(mine, other)


def test_ctrl_c_in_one_process_stops_both_after_the_same_step(together):
    assert newest(together / "interrupted").name == "step-000000005.ckpt"
    assert not list((together / "interrupted").glob("*.safetensors"))
