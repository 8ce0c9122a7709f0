"""Progressive distillation of an exact Gaussian teacher, and its stages on disk."""

import threading

import pytest
import torch
from exact import PATHS, mixture_2d
from test_consistency import Slope, close, gaussian, points, random_net
from torch import nn

from course_lib import VP, ClassifierFreeGuidance, Linear, NetDenoiser
from course_lib.distillation import ProgressiveDistillation, ProgressiveLoss, ddim_step
from course_lib.distillation import progressive as module
from course_lib.nets import MLP
from course_lib.samplers import ddim, sample

OPTIONS = {"steps": 3, "batch_size": 8}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_student_that_answers_the_target_ends_where_the_teacher_does(path):
    teacher, x = mixture_2d(path), points()
    ts = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    times = [t.repeat(6) for t in ts]
    x0 = ProgressiveLoss(teacher, 2).target(teacher, x, *times)
    eps = (x - path.alpha(ts[:1]) * x0) / path.sigma(ts[:1])
    end = path.alpha(ts[2:]) * x0 + path.sigma(ts[2:]) * eps
    close(end, ddim(teacher, x, ts), rtol=1e-6, atol=1e-6)


def test_the_last_step_ends_at_the_data():
    path, teacher, x = Linear(), mixture_2d(Linear()), points()
    ts = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    target = ProgressiveLoss(teacher, 2).target(teacher, x, *[t.repeat(6) for t in ts])
    close(target, ddim(teacher, x, ts))
    assert path.sigma(ts[2:]).item() == 0


def test_the_loss_by_hand():
    path, teacher = Linear(), mixture_2d(Linear())
    model, x0 = random_net(path, "velocity"), points(16)
    loss = ProgressiveLoss(teacher, 2)(model, x0, generator=torch.Generator().manual_seed(7))
    loss.backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(7)
    t = ((1 - torch.rand(16, generator=generator)).double() * 2).ceil() / 2
    t = 1.5 - t  # the first of the course's grid is t = 1
    assert set(t.tolist()) == {0.5, 1.0}
    xt = path.sample(x0, t, torch.empty_like(x0).normal_(generator=generator))
    middle = ddim_step(teacher, xt, t, t - 0.25)
    end = ddim_step(teacher, middle, t - 0.25, t - 0.5)
    ratio = ((t - 0.5) / t)[:, None]
    target = (end - ratio * xt) / ((1.5 - t)[:, None] - ratio * (1 - t)[:, None])
    weight = (((1 - t) / t) ** 2).clamp(min=1)
    model.zero_grad()
    hand = (weight * (model.data(xt, t) - target).square().mean(1)).mean()
    hand.backward()
    close(loss, hand)
    for mine, other in zip(gradient, model.parameters(), strict=True):
        close(mine, other.grad)


def test_an_exact_gaussian_teacher_is_halved_to_one_step(tmp_path):
    """DDIM maps eps to a multiple of it; the students keep the multiple of the first 2 N steps."""
    teacher = gaussian(Linear(), 0.5)
    x0 = teacher.sample(4000, generator=torch.Generator().manual_seed(0))
    student = NetDenoiser(Slope(0.5), Linear(), "velocity")
    run = ProgressiveDistillation(teacher, student=student, progress=False)
    students = run.run(x0, (4, 2, 1), steps=300, batch_size=128, lr=0.05, ema=0.98,
                       lr_schedule="cosine")  # fmt: skip
    one = torch.ones(1, 1, dtype=torch.float64)

    def slope(model, steps):
        return ddim(model, one, torch.linspace(1, 0, steps + 1, dtype=torch.float64)).item()

    want = slope(teacher, 8)
    found = [slope(model, n) for model, n in zip(students, (4, 2, 1), strict=True)]
    assert found == pytest.approx([want] * 3, rel=0.02)
    assert slope(teacher, 1) == pytest.approx(0, abs=1e-9)  # so there was something to learn


def test_each_student_begins_as_the_one_before_and_learns_from_it(monkeypatch):
    teacher, x0 = random_net(Linear(), "velocity"), points(32)
    seen = []

    def fit(model, data, *, objective, **options):
        seen.append((objective, model, options))
        model.losses = torch.zeros(options["steps"])
        return model

    monkeypatch.setattr(module, "fit", fit)
    run = ProgressiveDistillation(teacher, folder="somewhere", seed=5, progress=False)
    students = run.run(x0, (4, 2, 1), steps=3, lr=0.1)
    assert [o.steps for o, *_ in seen] == [4, 2, 1]
    assert [o.teacher for o, *_ in seen] == [teacher, *students[:-1]]
    assert len({id(m) for m in (teacher, *students)}) == 4
    assert all(
        torch.equal(a, b)
        for m in students
        for a, b in zip(m.parameters(), teacher.parameters(), strict=True)
    )
    assert [o["checkpoint"].name for *_, o in seen] == ["steps_04", "steps_02", "steps_01"]
    assert [(o["seed"], o["lr"]) for *_, o in seen] == [(5, 0.1), (6, 0.1), (7, 0.1)]


def test_a_guided_teacher_has_an_unguided_student():
    model = NetDenoiser(MLP(2, 8, 1, num_classes=3), Linear(), "velocity")
    guided = ClassifierFreeGuidance(model, 2.0)
    data = points(32).float(), torch.arange(32) % 3
    (student,) = ProgressiveDistillation(guided, progress=False).run(data, (1,), **OPTIONS)
    assert isinstance(student, NetDenoiser)
    assert sample(student, (4, 2), solver="ddim", steps=1, cond=torch.arange(4) % 3).shape == (4, 2)


def weights(students):
    return [p for model in students for p in model.parameters()]


def test_a_run_goes_on_where_it_stopped_and_trains_no_stage_twice(tmp_path, monkeypatch):
    teacher, x0 = random_net(Linear(), "velocity"), points(32)

    def run(folder):
        return ProgressiveDistillation(teacher, folder=folder, progress=False).run(
            x0, (2, 1), **OPTIONS
        )

    whole = run(None)
    original, calls = ProgressiveLoss.__call__, []

    def stopping(self, *arguments, **options):
        calls.append(self.steps)
        if len(calls) == 5:  # the second of the second stage
            raise FloatingPointError("killed")
        return original(self, *arguments, **options)

    monkeypatch.setattr(ProgressiveLoss, "__call__", stopping)
    with pytest.raises(FloatingPointError, match="killed"):
        run(tmp_path)
    again = run(tmp_path)
    assert calls == [2, 2, 2, 1, 1, 1, 1, 1]  # the second stage anew: nothing of it was saved
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def test_ctrl_c_ends_the_run(tmp_path, monkeypatch):
    import signal

    teacher, x0 = random_net(Linear(), "velocity"), points(32)
    original = ProgressiveLoss.__call__

    def interrupted(self, *arguments, **options):
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    monkeypatch.setattr(ProgressiveLoss, "__call__", interrupted)
    run = ProgressiveDistillation(teacher, folder=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt, match="steps_02 was stopped at step"), pytest.warns():
        run.run(x0, (2, 1), **OPTIONS)
    assert not (tmp_path / "steps_01").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProgressiveLoss(steps=0), "steps must be at least 1; got 0"),
        (lambda: ProgressiveLoss()(NET, points()), "teacher must be a Denoiser; got None"),
        (lambda: RUN.run(points(), (), steps=1), r"stages must halve, such as \(4, 2, 1\); got"),
        (lambda: RUN.run(points(), (4, 1), steps=1), r"stages must halve.*; got \(4, 1\)"),
        (lambda: RUN.run(points(), (0,), steps=1), r"stages must halve.*; got \(0,\)"),
        (
            lambda: ProgressiveDistillation(mixture_2d(VP()), student=NET),
            "teacher must be on the student's path",
        ),
        (
            lambda: ProgressiveLoss(random_net(Linear(), "noise"))(NET, points()),
            "prediction of noise is singular on",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


NET = random_net(Linear(), "velocity")
RUN = ProgressiveDistillation(NET, progress=False)


@pytest.mark.parametrize(
    "given", [{"teacher": nn.Identity()}, {"teacher": NET, "student": NET.net}]
)
def test_bare_networks_are_refused(given):
    with pytest.raises(TypeError, match="must be a Denoiser"):
        ProgressiveDistillation(**given)
