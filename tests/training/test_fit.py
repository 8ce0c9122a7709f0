import random
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from training_toy import STEPS, data, denoiser, run

from course_lib.denoisers import GaussianMixture, NetDenoiser
from course_lib.nets.mlp import MLP
from course_lib.objectives import denoising_loss
from course_lib.paths import Linear
from course_lib.training import engine, fit
from course_lib.training.batches import Batches, step_seed


def assert_same(a, b):
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def test_fit_is_the_loop_written_by_hand():
    """Without dropout: the same batches and noise, Adam, and the recursion of the average."""
    model, ema = denoiser().eval(), denoiser()
    batches, adam = Batches(data(), 16, seed=5), torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for n in range(STEPS):
        x0, _ = batches.batch(n)
        generator = torch.Generator().manual_seed(step_seed(5, n, 1))
        loss = denoising_loss(model, x0, generator=generator)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
        losses.append(loss.item())
        decay = min(0.9, (1 + n) / (10 + n)) if n else 0.0
        with torch.no_grad():
            for mean, live in zip(ema.parameters(), model.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * live)

    live = denoiser()
    live.net.forward = lambda x, t, cond=None: model_forward(live.net, x, t)
    fitted = run(live, seed=5, lr=1e-2, ema=0.9, grad_clip=0.5)
    torch.testing.assert_close(fitted.losses, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for mine, hand in zip(fitted.parameters(), ema.parameters(), strict=True):
        torch.testing.assert_close(mine, hand, rtol=1e-4, atol=1e-5)
    for mine, hand in zip(live.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, hand, rtol=1e-4, atol=1e-5)


def model_forward(net, x, t):
    return net.outer(torch.tanh(net.inner(torch.cat([x, t[:, None]], dim=1))))


def test_ema_zero_returns_a_copy_of_the_last_weights():
    live = denoiser()
    fitted = run(live, ema=0)
    assert_same(fitted, live)
    assert next(fitted.parameters()) is not next(live.parameters())


def test_a_mixture_is_learned():
    exact = GaussianMixture(
        torch.tensor([[-1.0, 0.5], [1.0, -0.5]]),
        torch.tensor([0.1, 0.3])[:, None, None] * torch.eye(2),
        torch.tensor([0.4, 0.6]),
        Linear(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NetDenoiser(MLP(2, width=64), Linear(), "velocity")
    fitted = fit(
        model, exact.sample, steps=400, lr=5e-3, lr_schedule="cosine", ema=0.95, progress=False
    )
    t = torch.full((2000,), 0.5)
    xt = exact.sample(2000, t, generator=torch.Generator().manual_seed(1))
    truth = exact.velocity(xt, t)
    with torch.no_grad():
        error = (fitted.velocity(xt, t) - truth).square().mean() / truth.square().mean()
    assert error < 0.03  # measured .007; 1 for the untrained network, whose output is zero
    assert fitted.losses.shape == (400,)
    assert fitted.losses[-50:].mean() < 0.8 * fitted.losses[:10].mean()


def test_the_caller_is_left_undisturbed():
    torch.manual_seed(1)
    numpy_state = np.random.get_state
    before = torch.get_rng_state(), numpy_state()[1].copy(), random.getstate()
    live = denoiser().eval()
    frozen = live.net.inner.bias.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = run(live)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(numpy_state()[1], before[1])
    assert random.getstate() == before[2]
    assert not live.training
    assert not fitted.training
    assert torch.equal(frozen, denoiser().net.inner.bias)
    wanted = [p.requires_grad for p in live.parameters()]
    assert [p.requires_grad for p in fitted.parameters()] == wanted == [True, False, True, True]


def test_same_seed_same_weights_other_seed_other_weights():
    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    assert_same(run(), first)
    assert not torch.equal(run(seed=1).losses, first.losses)


def test_silent_unless_asked(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(steps=3)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    run(steps=20, progress=True)
    out, err = capfd.readouterr()
    assert "20/20" in out + err
    assert "loss=" in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
@pytest.mark.parametrize("checkpoint", [None, "mine"])
def test_loggers_write(logger, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(steps=20, logger=logger, checkpoint=checkpoint)
    folder = tmp_path / (checkpoint or "runs") / logger
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    if logger == "csv":
        rows = (folder / "version_0" / "metrics.csv").read_text().splitlines()
        assert rows[0].split(",") == ["epoch", "loss", "step"]
        assert [row.split(",")[-1] for row in rows[1:]] == ["9", "19"]
    else:
        assert any("events.out.tfevents" in name for name in files)


def test_wandb_and_own_loggers(tmp_path, monkeypatch):
    from lightning.pytorch import loggers

    class Own(loggers.CSVLogger):
        pass

    monkeypatch.setattr(loggers, "WandbLogger", lambda save_dir: Own(save_dir, name="wandb"))
    run(steps=10, logger="wandb", checkpoint=tmp_path / "a")
    assert (tmp_path / "a" / "wandb").is_dir()
    run(steps=10, logger=Own(tmp_path, name="own"))
    assert (tmp_path / "own" / "version_0" / "metrics.csv").is_file()


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_missing_logger_says_what_to_install(logger, monkeypatch):
    from lightning.pytorch import loggers

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named ...")

    name = {"tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[logger]
    monkeypatch.setattr(loggers, name, missing)
    with pytest.raises(ValueError, match=f"'{logger}' needs a package .*: pip install {logger}$"):
        run(steps=1, logger=logger)


def test_trainer_options_reach_lightning():
    from lightning.pytorch import Callback

    class Count(Callback):
        steps = 0

        def on_train_batch_end(self, trainer, *_):
            self.steps += 1
            self.precision = trainer.precision

    count = Count()
    run(trainer_options={"precision": "bf16-mixed", "callbacks": [count]})
    assert (count.steps, count.precision) == (STEPS, "bf16-mixed")


def test_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert_same(results[0], run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\); got 1.0"),
        ({"grad_clip": -1}, "grad_clip must be positive or None; got -1"),
        ({"resume": "yes"}, "resume must be .*got 'yes'"),
        ({"lr_schedule": "steps"}, "lr_schedule must be one of .*cosine.*got 'steps'"),
        ({"lr_schedule": "step", "lr_step": 0}, "lr_step must be at least 1; got 0"),
        ({"lr_schedule": "step", "lr_gamma": 0.0}, "lr_gamma must be positive; got 0.0"),
        ({"trainer_options": {"max_steps": 3}}, "trainer_options must be without max_steps"),
        ({"trainer_options": {"devices": 0}}, r"trainer_options: .*devices=0"),
        ({"logger": "paper"}, "logger must be .*got 'paper'"),
        ({"x0": torch.zeros(0, 2)}, "at least one example"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_nothing_to_train():
    exact = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1), Linear())
    with pytest.raises(ValueError, match="GaussianMixture has no parameters to train"):
        run(exact)


def test_learning_rate_schedules():
    assert {engine.learning_rate_factor(n, 100, "constant") for n in range(100)} == {1.0}
    factors = [engine.learning_rate_factor(n, 100, "cosine") for n in range(101)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[5 + 19] == pytest.approx(0.5 * (1 + np.cos(np.pi * 19 / 95)))
    assert factors[-1] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(factors[5:]))


def test_the_rate_falls_in_steps():
    """As torch's own StepLR."""
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.StepLR(adam, step_size=4, gamma=0.3)
    for n in range(10):
        factor = engine.learning_rate_factor(n, 10, "step", 4, 0.3)
        assert factor == pytest.approx(reference.get_last_lr()[0])
        adam.step()
        reference.step()


def test_step_schedule_reaches_the_optimizer():
    """A rate that is nothing after 5 steps leaves the weights of step 5; before, it is constant."""
    short, long = denoiser(), denoiser()
    run(short, steps=5)
    run(long, steps=9, lr_schedule="step", lr_step=5, lr_gamma=1e-12)
    for mine, other in zip(long.parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


def test_ema_decay_grows_up_to_its_value():
    assert engine.ema_decay(0.999, 0) == pytest.approx(0.1)
    assert engine.ema_decay(0.999, 90) == pytest.approx(0.91)
    assert engine.ema_decay(0.999, 10**6) == 0.999


def test_dropout_seed_reaches_the_gpu(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seen.append)
    with torch.random.fork_rng(devices=[]):
        engine._seed_global(7, torch.device("cuda"))
        first = torch.rand(())
        torch.manual_seed(7)
        assert torch.rand(()) == first
    assert seen == [7]


def test_a_text_condition_comes_with_its_mask():
    tokens, mask = torch.randn(64, 3, 2), torch.ones(64, 3, dtype=torch.bool)
    seen = []

    def objective(model, x0, cond, *, generator):
        seen.append([part.shape for part in cond])
        return denoising_loss(model, x0, generator=generator)

    run(x0=(data(), (tokens, mask)), objective=objective, steps=1)
    assert seen == [[(16, 3, 2), (16, 3)]]


def recording(seen):
    """An objective that notes how far the training is said to be."""

    def objective(model, x0, cond=None, *, generator, progress):
        seen.append(progress)
        return denoising_loss(model, x0, cond, generator=generator)

    return objective


def test_an_objective_that_asks_is_told_the_progress():
    seen = []
    run(objective=recording(seen), steps=4)
    assert seen == [0, 0.25, 0.5, 0.75]


def test_progress_reaches_an_objective_in_another():
    def passes_on(objective):
        def wrapper(model, x0, cond, **options):
            return objective(model, x0, cond, **options)

        wrapper.objective = objective
        return wrapper

    seen = []
    run(objective=passes_on(passes_on(recording(seen))), steps=2)
    assert seen == [0, 0.5]
    run(objective=passes_on(denoising_loss), steps=2)  # which would refuse it


def test_a_run_that_knows_its_progress_cannot_be_prolonged(tmp_path):
    run(objective=recording([]), steps=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="steps is 4 here and 2 there"):
        run(objective=recording([]), steps=4, checkpoint=tmp_path)
