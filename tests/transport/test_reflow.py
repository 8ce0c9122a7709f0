"""Reflow of Gaussians, whose flows are linear and known, and of points, with a small network."""

import json
import signal
import threading
from functools import partial

import pytest
import torch
from linear_flows import SOURCE, TARGET, LinearFlow, cost, source
from safetensors.torch import load_file, save_file

from course_lib import VP, GaussianMixture, Linear, NetDenoiser, denoising_loss
from course_lib.data import eight_gaussians
from course_lib.nets import MLP
from course_lib.samplers import heun, sample, uniform_grid
from course_lib.training import fit
from course_lib.transport import (
    ReflowTrainer,
    fixed_pairs,
    gaussian_wasserstein2,
    one_step,
    pairs,
    sliced_wasserstein2,
)


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


# The example of the chapter: N(0, diag(4, .25)) to N(0, [[1, .9], [.9, 2]]).


def test_one_reflow_lowers_the_cost_but_not_to_the_optimum():
    zero = torch.zeros(2)
    independent = (torch.trace(SOURCE) + torch.trace(TARGET)).item()
    rectified = cost(LinearFlow().flow_map())
    optimal = gaussian_wasserstein2(zero, SOURCE, zero, TARGET) ** 2
    assert independent == pytest.approx(7.25, abs=1e-12)
    assert rectified == pytest.approx(2.5214, abs=5e-5)
    assert optimal == pytest.approx(2.0802, abs=5e-5)


def test_reflow_keeps_the_marginal_and_stops_after_one_round():
    first = LinearFlow().flow_map()
    close(first @ SOURCE @ first.T, TARGET)
    # Trained on the pairs (M eps, eps): Cov(x0, eps) = M SOURCE.
    second = LinearFlow(first @ SOURCE).flow_map()
    close(second, first)


def gaussian_trainer(flow, **options):
    given = {"source": source, "solver": "rk4", "steps": 50, "progress": False, **options}
    return ReflowTrainer(flow, (2,), **given)


def test_pairs_of_a_linear_flow_are_its_map():
    flow = LinearFlow()
    made = gaussian_trainer(flow, batch_size=300).generate_pairs(700)
    assert made.x0.shape == made.eps.shape == (700, 2)
    assert made.x0.dtype == torch.float64
    close(made.x0, made.eps @ flow.flow_map().T, rtol=1e-5, atol=1e-5)


def test_measured_cost_and_energy_of_the_rectified_flow():
    flow = LinearFlow()
    n = 20_000
    before = gaussian_trainer(flow, batch_size=n).measure(n=n)
    # A quadratic form of a Gaussian, |A z|^2, has variance 2 tr((A A^T)^2) <= 2 (tr A A^T)^2.
    assert before.transport_cost == pytest.approx(2.5214, abs=4 * 2.5214 * (2 / n) ** 0.5)
    assert before.path_energy == pytest.approx(before.transport_cost + before.straightness)
    assert before.straightness > 0.1
    straight = LinearFlow(flow.flow_map() @ SOURCE)
    after = gaussian_trainer(straight, batch_size=n).measure(n=n)
    assert after.straightness == pytest.approx(0, abs=1e-9)
    assert after.transport_cost == pytest.approx(before.transport_cost, rel=1e-4)
    eps = source(5, generator=torch.Generator().manual_seed(0))
    close(one_step(straight, eps), eps @ flow.flow_map().T)


def test_batches_of_a_measure_count_by_their_size():
    trainer = gaussian_trainer(LinearFlow(), batch_size=100)
    z, _ = trainer._draw(trainer.base, 50, 1, 2_000_000)  # the second batch
    states = trainer._trajectory(trainer.base, z, None)
    second = (states[-1] - states[0]).square().sum(1).mean().item()
    expected = (100 * trainer.measure(n=100).transport_cost + 50 * second) / 150
    assert trainer.measure(n=150).transport_cost == pytest.approx(expected)


# Points.


@pytest.fixture(scope="module")
def flow():
    """A small flow to eight Gaussians."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NetDenoiser(MLP(2, width=64), Linear(), "velocity", data_std=3.5)
    options = {"steps": 800, "lr": 3e-3, "lr_schedule": "cosine", "ema": 0.99, "progress": False}
    return fit(model, partial(eight_gaussians), batch_size=512, **options)


def trainer(flow, **options):
    given = {"steps": 12, "batch_size": 400, "progress": False, **options}
    return ReflowTrainer(flow, (2,), **given)


def test_stored_samples_are_made_of_the_stored_noise(flow, tmp_path):
    made = trainer(flow, folder=tmp_path).generate_pairs(1000)
    again = heun(flow, made.eps[400:800], uniform_grid(Linear(), 12))
    assert torch.equal(made.x0[400:800], again.detach())
    # and not of other noise: the common error of drawing the two ends apart
    other = heun(flow, made.eps[:400], uniform_grid(Linear(), 12))
    assert (made.x0[400:800] - other).abs().max() > 1
    sizes = [len(load_file(f)["x0"]) for f in sorted(tmp_path.rglob("batch-*.safetensors"))]
    assert sizes == [400, 400, 200]
    assert abs(made.eps.mean()) < 4 / 2000**0.5
    assert abs(made.eps.var() - 1) < 4 * (2 / 2000) ** 0.5


def test_noise_depends_on_seed_and_round_and_batch(flow):
    base = trainer(flow).generate_pairs(800)
    assert torch.equal(base.eps, trainer(flow).generate_pairs(800).eps)
    assert not torch.equal(base.eps[:400], base.eps[400:])
    assert not torch.equal(base.eps, trainer(flow).generate_pairs(800, number=2).eps)
    assert not torch.equal(base.eps, trainer(flow, seed=1).generate_pairs(800).eps)


def test_paths_straighten_round_by_round_and_one_step_is_enough(flow, tmp_path):
    options = {"pairs": 4000, "steps": 400, "batch_size": 512, "lr": 2e-3, "lr_schedule": "cosine"}
    reflow = trainer(flow, batch_size=2000, folder=tmp_path)
    state = torch.get_rng_state()
    weights = pairs.weights_hash(flow)
    rounds = [reflow.measure(), *reflow.train_reflow(2, **options)]
    assert [r.number for r in rounds] == [0, 1, 2]
    for number in (1, 2):  # each round's pairs are those of the flow of the round before
        note = json.loads((tmp_path / f"round_{number}" / "pairs" / "pairs.json").read_text())
        assert note["weights"] == pairs.weights_hash(rounds[number - 1].denoiser)
    assert rounds[0].straightness > 3 * rounds[1].straightness
    assert rounds[1].straightness > 1.2 * rounds[2].straightness
    for r in rounds:
        assert r.path_energy == pytest.approx(r.transport_cost + r.straightness)
    assert rounds[1].transport_cost < rounds[0].transport_cost + 0.3
    # Few Euler steps, against the data: before and after.
    data = eight_gaussians(4000, seed=5)
    errors = [sliced_wasserstein2(one_step(r.denoiser, reflow._draw(flow, 4000, 0, 7)[0]), data)
              for r in rounds]  # fmt: skip
    assert max(errors[1:]) < errors[0] / 2
    # Neither the flow nor the global random state has moved.
    assert pairs.weights_hash(flow) == weights
    assert torch.equal(state, torch.get_rng_state())

    # The same call again finds itself finished: nothing is trained, every weight is the same.
    written = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.ckpt")}
    again = trainer(flow, batch_size=2000, folder=tmp_path).train_reflow(2, **options)
    assert written == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.ckpt")}
    for a, b in zip(again, rounds[1:], strict=True):
        assert pairs.weights_hash(a.denoiser) == pairs.weights_hash(b.denoiser)
        assert a.straightness == b.straightness


def test_distillation_is_regression_at_the_noise_end(flow, tmp_path):
    reflow = trainer(flow, folder=tmp_path)
    options = {"steps": 300, "batch_size": 256, "lr": 2e-3, "ema": 0.99}
    student = reflow.distill(pairs=2000, **options)
    made = trainer(flow).generate_pairs(2000)
    before = (one_step(flow, made.eps) - made.x0).square().mean()
    after = (one_step(student, made.eps) - made.x0).square().mean()
    assert after < before / 3
    # The loss of a step by hand, on the first batch.
    seen = []

    def objective(denoiser, x0, cond, *, generator):
        ours = denoising_loss(denoiser, x0, cond, coupling=fixed_pairs, t=torch.ones(len(x0)))
        by_hand = (x0 - (cond[0] - denoiser.velocity(cond[0], torch.ones(len(x0))))).square().mean()
        close(ours, by_hand)
        seen.append(ours.item())
        return ours

    trainer(flow).distill(pairs=2000, objective=objective, **{**options, "steps": 2})
    close(torch.tensor(seen), student.losses[:2])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["distilled_0"]


def test_conditions_go_with_their_pairs(tmp_path):
    torch.manual_seed(0)
    model = NetDenoiser(MLP(2, width=16, num_classes=3), Linear(), "velocity")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape)

    def labels(n, *, generator):
        return torch.randint(3, (n,), generator=generator)

    made = trainer(model, conditions=labels, folder=tmp_path).generate_pairs(900)
    stored = trainer(model, conditions=labels, folder=tmp_path).generate_pairs(900)
    assert set(made.cond.tolist()) == {0, 1, 2}
    for name in ("x0", "eps", "cond"):
        assert torch.equal(getattr(made, name), getattr(stored, name))
    again = heun(model, made.eps[:400], uniform_grid(Linear(), 12), cond=made.cond[:400])
    assert torch.equal(made.x0[:400], again.detach())
    first = trainer(model, conditions=labels, batch_size=200).train_reflow(
        1, pairs=400, steps=2, batch_size=8
    )
    assert first[0].straightness > 0
    other = trainer(model, conditions=lambda n, **_: torch.zeros(n).long(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"conditions is '\w+' here and '\w+' there"):
        other.generate_pairs(900)


class Tokens(LinearFlow):
    """Takes a condition of two parts, and moves as one of them says."""

    def predict(self, xt, t, cond=None):
        tokens, mask = cond
        return super().predict(xt, t) * mask.sum(1, keepdim=True) + tokens.sum(1)


def test_conditions_of_several_parts_are_kept(tmp_path):
    def tokens(n, *, generator):
        return (torch.randn(n, 3, 2, generator=generator).double(),
                torch.rand(n, 3, generator=generator) < 0.5)  # fmt: skip

    reflow = gaussian_trainer(Tokens(), conditions=tokens, folder=tmp_path, batch_size=8, steps=4)
    made, stored = reflow.generate_pairs(20), reflow.generate_pairs(20)
    for a, b in zip(made.cond, stored.cond, strict=True):
        assert torch.equal(a, b)
    assert [part.shape for part in made.cond] == [(20, 3, 2), (20, 3)]
    assert made.data[1][1] is made.cond


# Killed, damaged and mixed up.


class StopAt:
    """A solver that is stopped when it is asked for batch ``stop``."""

    def __init__(self, stop):
        self.calls, self.stop, self.__name__ = 0, stop, "heun"

    def __call__(self, *args, **options):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return heun(*args, **options)


def test_a_killed_run_goes_on_with_the_same_pairs(flow, tmp_path):
    whole = trainer(flow).generate_pairs(1800)
    with pytest.raises(KeyboardInterrupt):
        trainer(flow, folder=tmp_path, solver=StopAt(2)).generate_pairs(1800)
    assert len(list(tmp_path.rglob("batch-*.safetensors"))) == 2
    rest = StopAt(5)
    resumed = trainer(flow, folder=tmp_path, solver=rest).generate_pairs(1800)
    assert rest.calls == 3
    assert torch.equal(resumed.x0, whole.x0)
    assert torch.equal(resumed.eps, whole.eps)
    assert not list(tmp_path.rglob("*.tmp"))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-10] ^= 255
    file.write_bytes(bytes(content))


def empty(file):
    file.write_bytes(b"")


def unlabelled(file):
    save_file(load_file(file), file)


@pytest.mark.parametrize("damage", [truncate, flip, empty, unlabelled])
def test_a_damaged_file_is_made_again(flow, tmp_path, damage):
    whole = trainer(flow, folder=tmp_path).generate_pairs(1000)
    damage(tmp_path / "round_1" / "pairs" / "batch-00001.safetensors")
    mended = StopAt(9)
    again = trainer(flow, folder=tmp_path, solver=mended).generate_pairs(1000)
    assert mended.calls == 1
    assert torch.equal(again.x0, whole.x0)
    unread = StopAt(0)
    trainer(flow, folder=tmp_path, solver=unread).generate_pairs(1000)
    assert unread.calls == 0


def test_files_of_other_pairs_are_not_taken(flow, tmp_path):
    """Even without their note, for instance copied from another folder."""
    trainer(flow, folder=tmp_path, seed=1).generate_pairs(400)
    (tmp_path / "round_1" / "pairs" / "pairs.json").unlink()
    mine = trainer(flow, folder=tmp_path).generate_pairs(400)
    assert torch.equal(mine.x0, trainer(flow).generate_pairs(400).x0)


def other_weights(flow):
    other = NetDenoiser(MLP(2, width=64), Linear(), "velocity", data_std=3.5)
    weights = flow.state_dict()
    name = next(iter(weights))
    other.load_state_dict({**weights, name: weights[name] + 1e-6})
    return other


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 13}, "steps is 13 here and 12 there"),
        ({"solver": "rk4"}, "solver is 'rk4' here and 'heun' there"),
        ({"seed": 4}, "seed is 4 here and 0 there"),
        ({"batch_size": 100}, "batch_size is 100 here and 400 there"),
        ({"source": source}, r"source is '\w+' here and '\w+' there"),
        ({"n": 401}, "n is 401 here and 400 there"),
        ({"base": other_weights}, r"weights is 'NetDenoiser \w+' here and 'NetDenoiser \w+' there"),
    ],
)
def test_another_recipe_is_refused(flow, tmp_path, change, field):
    trainer(flow, folder=tmp_path).generate_pairs(400)
    change = dict(change)
    n, base = change.pop("n", 400), change.pop("base", lambda flow: flow)(flow)
    with pytest.raises(ValueError, match=rf"holds other pairs: .*{field}.*Give another folder"):
        trainer(base, folder=tmp_path, **change).generate_pairs(n)
    # The folder is as it was.
    trainer(flow, folder=tmp_path, solver=StopAt(0)).generate_pairs(400)


def test_a_damaged_note_is_named(flow, tmp_path):
    trainer(flow, folder=tmp_path).generate_pairs(10)
    note = tmp_path / "round_1" / "pairs" / "pairs.json"
    assert json.loads(note.read_text())["steps"] == 12
    note.write_text("{")
    with pytest.raises(ValueError, match=r"pairs\.json is damaged"):
        trainer(flow, folder=tmp_path).generate_pairs(10)


def test_ctrl_c_in_training_stops_before_the_next_round(flow, tmp_path):
    options = {"pairs": 400, "steps": 30, "batch_size": 32}
    whole = trainer(flow).train_reflow(2, **options)
    calls = []

    def objective(*args, **others):
        calls.append(1)
        if len(calls) == 12:
            signal.raise_signal(signal.SIGINT)
        return denoising_loss(*args, coupling=fixed_pairs, **others)

    assert threading.current_thread() is threading.main_thread()
    with (
        pytest.warns(UserWarning, match="fit was interrupted after step 12 of 30"),
        pytest.raises(KeyboardInterrupt, match="round_1 was stopped at step 12 of 30"),
    ):
        trainer(flow, folder=tmp_path).train_reflow(2, objective=objective, **options)
    assert not (tmp_path / "round_2").exists()
    rest = trainer(flow, folder=tmp_path).train_reflow(2, objective=objective, **options)
    assert len(calls) == 12 + 18 + 30
    for a, b in zip(rest, whole, strict=True):
        assert pairs.weights_hash(a.denoiser) == pairs.weights_hash(b.denoiser)


def test_any_flow_may_make_the_pairs_in_evaluation_mode(flow):
    exact = GaussianMixture(
        torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1), Linear()
    )  # predicts the data
    # The flow from N(0, I) to N(0, I) ends where it began.
    made = trainer(flow).generate_pairs(50, exact)
    close(made.x0, made.eps, rtol=0, atol=0.02)
    modes = []
    exact.data = lambda *_: modes.append(exact.training)
    with pytest.raises(TypeError):
        trainer(flow).generate_pairs(50, exact.train())
    assert modes == [False]
    assert exact.training


def test_progress_is_shown_where_it_is_wanted(flow, capsys):
    trainer(flow).generate_pairs(10)
    assert capsys.readouterr().err == ""
    trainer(flow, progress=True).generate_pairs(10)
    assert "10/10" in capsys.readouterr().err


def test_one_step_is_one_euler_step(flow):
    eps = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    close(one_step(flow, eps), sample(flow, (9, 2), solver="euler", steps=1, seed=0))


def test_wrong_arguments_are_named(flow):
    with pytest.raises(TypeError, match="got MLP: a network becomes one by"):
        ReflowTrainer(MLP(2), (2,))
    with pytest.raises(ValueError, match=r"base must be on the path Linear\(\); got VP"):
        ReflowTrainer(NetDenoiser(MLP(2), VP(), "velocity"), (2,))
    with pytest.raises(ValueError, match="base must predict \"velocity\"; got 'noise'"):
        ReflowTrainer(NetDenoiser(MLP(2), Linear()), (2,))
    with pytest.raises(ValueError, match="solver must be one of euler"):
        trainer(flow, solver="nothing")
    with pytest.raises(ValueError, match="of the ODE, such as heun; ancestral draws noise"):
        trainer(flow, solver="ancestral")
    for name in ("steps", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            trainer(flow, **{name: 0})
    for call in (lambda t: t.generate_pairs(0), lambda t: t.measure(n=0)):
        with pytest.raises(ValueError, match="n must be at least 1; got 0"):
            call(trainer(flow))
    with pytest.raises(ValueError, match="rounds must be at least 1; got 0"):
        trainer(flow).train_reflow(0, steps=1)
    with pytest.raises(ValueError, match=r"source must return shape .*\(5, 2\); got \(5, 3\)"):
        trainer(flow, source=lambda n, **_: torch.zeros(n, 3)).measure(n=5)
    wrong = NetDenoiser(MLP(2), VP(), "velocity")
    for call in (trainer(flow).measure, partial(trainer(flow).generate_pairs, 5),
                 lambda denoiser: one_step(denoiser, torch.zeros(3, 2))):  # fmt: skip
        with pytest.raises(ValueError, match=r"denoiser must be on the path Linear\(\)"):
            call(wrong)
