"""A run that is killed, interrupted, damaged or refused."""

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from training_toy import STEPS, Net, data, denoiser, objective_that, run

from course_lib.denoisers import NetDenoiser
from course_lib.objectives import denoising_loss, snr_weight
from course_lib.paths import VP, Linear
from course_lib.training.checkpoints import checkpoint_path, newest

TOY = Path(__file__).with_name("training_toy.py")


@pytest.fixture(scope="module")
def whole():
    """The run that nothing happens to."""
    live = denoiser()
    return run(live, objective=objective_that(lambda: None, 0)), live


def assert_same(a, b):
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def resume(folder, **options):
    live = denoiser(seed=9)  # other first weights: all must come from the checkpoint
    objective = objective_that(lambda: None, 0)
    return run(live, checkpoint=folder, **{"objective": objective, **options}), live


def test_killed_at_a_random_step_and_resumed_is_bit_identical(whole, tmp_path):
    at = int(torch.randint(9, STEPS, (), generator=torch.Generator().manual_seed(3)))
    child = subprocess.run([sys.executable, TOY, tmp_path, str(at)], check=False)
    assert child.returncode != 0
    done = int(newest(tmp_path).stem.removeprefix("step-"))
    assert done == (at - 1) // 7 * 7  # saved every 7 steps, killed within step `at`
    fitted, live = resume(tmp_path)
    assert_same(fitted, whole[0])
    assert_same(live, whole[1])
    assert torch.equal(fitted.losses, whole[0].losses)
    assert newest(tmp_path) == checkpoint_path(tmp_path, STEPS)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_interrupted_stops_cleanly_and_goes_on(schedule, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    interrupt = objective_that(lambda: signal.raise_signal(signal.SIGINT), 12)
    options = {"lr_schedule": schedule, "lr_step": 7}
    with pytest.warns(UserWarning, match="interrupted after step 12 of 30; the same call goes on"):
        part = run(checkpoint=tmp_path, objective=interrupt, **options)
    assert signal.getsignal(signal.SIGINT) is before
    assert part.losses.shape == (12,)
    assert newest(tmp_path) == checkpoint_path(tmp_path, 12)
    assert_same(resume(tmp_path, **options)[0], run(**options))


def test_interrupted_without_a_folder_returns_the_average_so_far():
    interrupt = objective_that(lambda: signal.raise_signal(signal.SIGINT), 12)
    with pytest.warns(UserWarning, match="after step 12 of 30; give a checkpoint folder"):
        part = run(objective=interrupt)
    assert_same(part, run(steps=12))


@pytest.fixture
def heeded():
    """Ctrl-C as in a terminal; a shell has a command in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_second_interrupt_is_not_caught(heeded):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(objective=objective_that(twice, 4))
    assert signal.getsignal(signal.SIGINT) is heeded


def test_half_written_checkpoint_is_passed_over(whole, tmp_path):
    run(checkpoint=tmp_path, steps=20, objective=objective_that(lambda: None, 0))
    newest_path = newest(tmp_path)
    newest_path.write_bytes(newest_path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-000000020.ckpt is damaged"):
        fitted, _ = resume(tmp_path)
    assert_same(fitted, whole[0])


def test_finished_run_is_read_back_and_can_be_prolonged(whole, tmp_path):
    run(checkpoint=tmp_path, steps=20, objective=objective_that(lambda: None, 0))
    again, _ = resume(tmp_path, steps=20)
    assert_same(again, run(steps=20))
    longer, _ = resume(tmp_path)
    assert_same(longer, whole[0])
    assert longer.losses.shape == (STEPS,)


def test_resume_false_starts_anew(whole, tmp_path):
    run(checkpoint=tmp_path, steps=40, seed=1)
    fitted = run(checkpoint=tmp_path, resume=False, objective=objective_that(lambda: None, 0))
    assert_same(fitted, whole[0])
    assert newest(tmp_path) == checkpoint_path(tmp_path, STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed is 1 here and 0 there"),
        ({"batch_size": 8}, "batch_size is 8 here and 16 there"),
        ({"lr": 1e-4}, "lr is 0.0001 here and 0.001 there"),
        ({"lr_schedule": "cosine"}, "lr_schedule is 'cosine' here and 'constant' there"),
        ({"lr_schedule": "step"}, "lr_step is 1000 here and None there"),
        ({"steps": 5}, "steps is 5 here and 10 are done there"),
        ({"x0": data()[:32]}, r"data is '\(32, 2\) \w+' here and '\(64, 2\) \w+' there"),
        ({"x0": 2 * data()}, r"data is '\(64, 2\) \w+' here and"),
        ({"objective": lambda *a, **k: denoising_loss(*a, **k)}, "objective is .*lambda"),
        (
            {"objective": partial(denoising_loss, weight=snr_weight)},
            "objective is 'functools.partial.*<function snr_weight>",
        ),
        ({"model": torch.nn.Linear(2, 2)}, "model is 'Linear .*NetDenoiser velocity Linear"),
        ({"model": NetDenoiser(Net(), Linear(), "v")}, "model is 'NetDenoiser v Linear"),
        ({"model": NetDenoiser(Net(), VP(), "velocity")}, "model is 'NetDenoiser velocity VP"),
    ],
)
def test_checkpoint_of_another_run_is_refused(options, message, finished):
    with pytest.raises(ValueError, match=f"of another run: .*{message}.*resume=False"):
        run(**{"steps": 10, "checkpoint": finished, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(checkpoint=folder, steps=10)
    return folder


def test_full_disk_stops_and_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full_later(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_later)
    with pytest.raises(OSError, match=f"in folder {tmp_path}") as caught:
        run(checkpoint=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert newest(tmp_path) == checkpoint_path(tmp_path, 7)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_names_the_step_and_keeps_good_weights(where, tmp_path):
    calls = 0

    def objective(model, x0, cond, *, generator):
        nonlocal calls
        calls += 1
        loss = denoising_loss(model, x0, cond, generator=generator)
        if calls < 10:
            return loss
        # The square root has an infinite slope at 0: a finite loss with a gradient that is not.
        return loss / 0 if where == "loss" else loss + (0 * model.net.outer.bias[0]).sqrt()

    live = denoiser()
    with pytest.raises(FloatingPointError, match=f"the {where} is .* at step 9; .*learning rate"):
        run(live, objective=objective, checkpoint=tmp_path)
    nine = denoiser()
    run(nine, steps=9)
    assert_same(live, nine)
    assert newest(tmp_path) == checkpoint_path(tmp_path, 7)
