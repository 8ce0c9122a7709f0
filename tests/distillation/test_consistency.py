"""Consistency models against exact paths: of N(0, 1), which are lines, and of a mixture."""

import math

import pytest
import torch
from exact import PATHS, mixture_2d
from torch import nn

from course_lib import (
    VE,
    VP,
    ClassifierFreeGuidance,
    CosineVP,
    GaussianMixture,
    Linear,
    NetDenoiser,
)
from course_lib.distillation import (
    T_MIN,
    ConsistencyDistillation,
    ConsistencyTraining,
    consistency,
    consistency_function,
    ddim_step,
    multistep,
    pseudo_huber,
    skip_out,
    squared_distance,
)
from course_lib.nets import MLP
from course_lib.samplers import ddim, sample
from course_lib.training import fit

FACES = ("noise", "data", "v", "velocity", "score")


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


def gaussian(path, std=1.0, dim=1):
    """Data N(0, std^2 I), float64."""
    one = torch.ones(1, dtype=torch.float64)
    covs = std**2 * torch.eye(dim, dtype=torch.float64)[None]
    return GaussianMixture(torch.zeros(1, dim, dtype=torch.float64), covs, one, path)


def spread(path, t, std):
    """Standard deviation of x_t if the data are N(0, std^2)."""
    return torch.sqrt(path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2)


class Exact(NetDenoiser):
    """Whose consistency function is that of N(0, std^2): f(x, t) = x s(t_min) / s(t)."""

    def __init__(self, path, std=1.0, t_min=T_MIN):
        super().__init__(nn.Identity(), path, "v")
        self.std, self.t_min = std, t_min

    def predict(self, xt, t, cond=None):
        skip, out = skip_out(self.path, t, "v", self.t_min)
        ratio = spread(self.path, torch.full_like(t, self.t_min), self.std)
        ratio = ratio / spread(self.path, t, self.std)
        return (torch.where(out == 0, 0, (ratio - skip) / out)[:, None]) * xt


def random_net(path, face):
    torch.manual_seed(0)
    net = MLP(2, 8, 1).double()
    nn.init.normal_(net.out.weight)
    return NetDenoiser(net, path, face)


def points(n=6, dim=2, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_end_is_a_fixed_point_of_every_network(path, face):
    x, t = points(), torch.full((6,), T_MIN, dtype=torch.float64)
    assert torch.equal(consistency_function(random_net(path, face), x, t), x)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_it_is_a_step_of_ddim(path, face):
    model, x = random_net(path, face), points()
    ts = torch.tensor([0.7, 0.25], dtype=torch.float64)
    mine = ddim_step(model, x, ts[:1].repeat(6), ts[1])
    close(mine, ddim(model, x, ts), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("face", ["data", "v", "velocity"])
@pytest.mark.parametrize("path", [CosineVP(), Linear()], ids=str)
def test_it_is_finite_at_pure_noise(path, face):
    t = torch.ones(6, dtype=torch.float64)
    model = random_net(path, face)
    x = points()
    found = consistency_function(model, x, t)
    want = path.alpha(torch.tensor(T_MIN).double()) * model.data(x, t)
    want = want + path.sigma(torch.tensor(T_MIN).double()) * model.noise(x, t)
    close(found, want)


def test_noise_where_there_is_no_data_says_nothing():
    model, t = random_net(Linear(), "noise"), torch.ones(6, dtype=torch.float64)
    with pytest.raises(ValueError, match="a DDIM step from a prediction of noise is singular on"):
        consistency_function(model, points(), t)


def test_skip_and_out_are_those_of_the_papers():
    t = torch.linspace(0.05, 0.9, 7, dtype=torch.float64)
    skip, out = skip_out(Linear(), t, "velocity", 0.01)
    close(skip, torch.ones_like(t))
    close(out, 0.01 - t)
    # TrigFlow: the angle of a variance-preserving path, sin = sigma.
    path, end = VP(), torch.tensor(0.01, dtype=torch.float64)
    d = torch.asin(path.sigma(t)) - torch.asin(path.sigma(end))
    skip, out = skip_out(path, t, "v", 0.01)
    close(skip, d.cos())
    close(out, -d.sin())


def test_each_sample_may_have_its_own_times():
    model, x = random_net(VP(), "v"), points()
    t, s = torch.linspace(0.5, 1, 6).double(), torch.linspace(0.1, 0.4, 6).double()
    rows = [ddim_step(model, x[i : i + 1], t[i : i + 1], s[i]) for i in range(6)]
    close(ddim_step(model, x, t, s), torch.cat(rows))


def test_distances():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 1e-3]]).double(), torch.zeros(2, 2).double()
    close(
        pseudo_huber(a, b, c=2.0), torch.tensor([29**0.5 - 2, 2.5e-7]).double(), rtol=1e-6, atol=0
    )
    close(squared_distance(a, b), torch.tensor([25.0, 1e-6]).double())
    c = 0.00054 * math.sqrt(2)
    close(pseudo_huber(a, b), torch.sqrt((a**2).sum(1) + c**2) - c)


# The multistep sampler, on the exact consistency function.


@pytest.mark.parametrize("path", [VP(), CosineVP(), VE(0.01, 20.0), Linear()], ids=str)
def test_multistep_keeps_the_variance(path):
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(40_000, 1, dtype=torch.float64, generator=generator)
    alpha, sigma = path.alpha(torch.ones(1).double()), path.sigma(torch.ones(1).double())
    eps = eps * torch.sqrt(alpha**2 + sigma**2) / sigma  # x_1 of data N(0, 1), which has alpha left
    drawn = multistep(Exact(path), eps, [0.8, 0.5, 0.2], generator=generator)
    end = spread(path, torch.tensor([T_MIN]).double(), 1.0).item()
    assert drawn.var().item() == pytest.approx(end**2, abs=4 * (2 / 40_000) ** 0.5)


def test_one_step_is_the_function_and_the_solver_is_the_same():
    path = Linear()
    model, eps = random_net(path, "velocity"), points(5)
    f = consistency_function(model, eps, torch.ones(5).double())
    close(multistep(model, eps), f)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    mine = multistep(model, eps, [0.5], generator=generators[0])
    ts = torch.tensor([1.0, 0.5, 0.0])
    close(mine, consistency(model, eps, ts, generator=generators[1]))
    # By hand: x_tau = alpha_tau / alpha_min x + noise, and f again.
    z = torch.empty_like(eps).normal_(generator=torch.Generator().manual_seed(3))
    keep = 0.5 / (1 - T_MIN)
    x = keep * f + math.sqrt(0.25 - (keep * T_MIN) ** 2) * z
    close(mine, consistency_function(model, x, torch.full((5,), 0.5).double()))


def test_sample_takes_the_solver():
    model = random_net(Linear(), "velocity")
    drawn = sample(model, (4, 2), solver=consistency, steps=3, seed=2, return_trajectory=True)
    assert drawn.shape == (4, 4, 2)
    close(drawn[0], torch.randn(4, 2, generator=torch.Generator().manual_seed(2)).double(), atol=9,
          rtol=0)  # fmt: skip


# Training.


def parts(objective, model, x0, **options):
    """The loss and its gradient."""
    model.zero_grad()
    loss = objective(model, x0, generator=torch.Generator().manual_seed(7), **options)
    loss.backward()
    return loss, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("weighted", "distance"),
    [(False, pseudo_huber), (True, pseudo_huber), (True, squared_distance)],
)
def test_no_gradient_reaches_the_target(weighted, distance):
    """The gradient of distillation by hand, with draws in the order of the objective."""
    path, teacher = Linear(), mixture_2d(Linear())
    model, x0 = random_net(path, "velocity"), points(16)
    options = {"segments": 4, "weighted": weighted, "distance": distance}
    loss, gradient = parts(ConsistencyDistillation(teacher, "euler", **options), model, x0)
    generator = torch.Generator().manual_seed(7)
    n = ((1 - torch.rand(16, generator=generator)).double() * 4).ceil() - 1
    t = 1 - n / 4 * (1 - T_MIN)
    s = t - (1 - T_MIN) / 4
    eps = torch.empty_like(x0).normal_(generator=generator)
    xt = path.sample(x0, t, eps)
    xs = xt + (s - t)[:, None] * teacher.velocity(xt, t)
    target = xs + (T_MIN - s)[:, None] * model.velocity(xs, s)
    f = xt + (T_MIN - t)[:, None] * model.velocity(xt, t)
    model.zero_grad()
    unit = (t - T_MIN)[:, None] if weighted else 1.0  # |c_out| of a velocity on Linear
    hand = distance(f / unit, target.detach() / unit).mean()
    hand.backward()
    close(loss, hand, rtol=1e-6, atol=1e-6)
    for mine, other in zip(gradient, model.parameters(), strict=True):
        close(mine, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "ddim", "euler"])
def test_the_exact_function_has_little_to_learn(solver):
    """What is left is the error of the teacher's step, which shrinks with its order."""
    path, teacher = Linear(), gaussian(Linear(), 0.5)
    x0 = teacher.sample(500, generator=torch.Generator().manual_seed(0))
    distance = lambda a, b: (a - b).abs().flatten(1).mean(1)  # noqa: E731
    left = [
        ConsistencyDistillation(teacher, solver, segments, distance=distance)(
            Exact(path, 0.5), x0, generator=torch.Generator().manual_seed(1)
        ).item()
        for segments in (64, 128)
    ]
    order = math.log2(left[0] / left[1])
    assert order > (2.3 if solver == "heun" else 1.5)  # locally one more than the solver's


class Slope(nn.Module):
    """v(x, t) = w(t) x, with w a sum of cosines; at first the velocity of data N(0, std^2)."""

    def __init__(self, std):
        super().__init__()
        t = torch.linspace(0, 1, 101, dtype=torch.float64)
        one = torch.ones(101, 1, dtype=torch.float64)
        velocity = gaussian(Linear(), std).velocity(one, t)
        self.w = nn.Parameter(torch.linalg.lstsq(self.waves(t), velocity).solution[:, 0])

    def waves(self, t):
        return torch.cos(math.pi * t[:, None] * torch.arange(6))

    def forward(self, x, t, cond=None):
        return (self.waves(t) @ self.w)[:, None] * x


def learned(objective, std=0.5, **options):
    """A Slope trained on N(0, std^2)."""
    x0 = gaussian(Linear(), std).sample(4000, generator=torch.Generator().manual_seed(0))
    given = {"steps": 500, "batch_size": 128, "lr": 0.05, "ema": 0.98, "lr_schedule": "cosine"}
    model = NetDenoiser(Slope(std), Linear(), "velocity")
    return fit(model, x0, objective=objective, progress=False, **given | options)


@pytest.mark.parametrize(
    ("objective", "tolerance", "options"),
    [
        (ConsistencyDistillation(gaussian(Linear(), 0.5), segments=8), 0.02, {}),
        (
            ConsistencyTraining((16, 16), mean=0.0, std=1.5, distance=squared_distance),
            0.1,
            {"lr": 0.02, "batch_size": 512},
        ),
    ],
    ids=["distillation", "training"],
)
def test_a_gaussian_is_learned(objective, tolerance, options):
    """x_1 = eps goes to 0.5 eps.

    Distillation errs by the teacher's steps, less than 1 %. Training shrinks the map besides, here
    by 4 to 5 %: each x_s is a random step from x_t, and with 16 segments the steps are long.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    slope = consistency_function(learned(objective, **options), one, one[0]).item()
    assert slope == pytest.approx(0.5, rel=tolerance)
    teacher = gaussian(Linear(), 0.5)  # whose one long step ends at the mean
    assert consistency_function(teacher, one, one[0]).item() == pytest.approx(0, abs=0.01)


def test_guidance_is_distilled():
    """The target is that of a step with the guided teacher, also with one condition a sample."""
    from exact import class_mixture

    path = Linear()
    mixture = class_mixture(path)
    guided = ClassifierFreeGuidance(mixture, 3.0)
    torch.manual_seed(0)
    student = NetDenoiser(MLP(2, 8, 1, num_classes=3).double(), path, "velocity")
    cond, x0 = torch.arange(6) % 3, points()

    def loss(teacher):
        objective = ConsistencyDistillation(teacher, segments=5)
        return objective(student, x0, cond, generator=torch.Generator().manual_seed(0)).item()

    assert loss(guided) != pytest.approx(loss(mixture), rel=0.01)
    one = ClassifierFreeGuidance(mixture, 1.0)
    assert loss(one) == pytest.approx(loss(mixture), rel=1e-9)


def test_the_teacher_is_neither_trained_nor_part_of_the_student():
    path = Linear()
    teacher, student = random_net(path, "velocity"), random_net(path, "velocity")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = ConsistencyDistillation(teacher.train(), segments=3)
    model = fit(student, points(32), objective=objective, steps=3, batch_size=8, progress=False)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert set(model.state_dict()) == set(before)
    assert not teacher.training


def test_the_checkpoint_of_another_teacher_is_refused(tmp_path):
    path, x0 = Linear(), points(32)
    options = {"steps": 2, "batch_size": 8, "progress": False, "checkpoint": tmp_path}

    def run(teacher):
        objective = ConsistencyDistillation(teacher, segments=3)
        return fit(random_net(path, "velocity"), x0, objective=objective, **options)

    run(gaussian(path, 0.5, 2))
    run(gaussian(path, 0.5, 2))
    with pytest.raises(ValueError, match="taught_by"):
        run(gaussian(path, 0.6, 2))


def test_segments_double_while_training_goes_on():
    objective = ConsistencyTraining((10, 160))
    found = [objective.count(p) for p in (0, 0.19, 0.2, 0.4, 0.6, 0.8, 1)]
    assert found == [10, 10, 20, 40, 80, 160, 160]
    assert ConsistencyTraining((4, 4)).count(0.5) == 4
    assert ConsistencyTraining((3, 20)).count(1) == 20


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_chances_are_those_of_a_lognormal_noise_level(path):
    objective = ConsistencyTraining(mean=-1.1, std=2.0)
    ts = torch.linspace(1, T_MIN, 9, dtype=torch.float64)
    found = objective.chances(path, ts)
    lam = path.log_snr_half(ts)
    cdf = torch.distributions.Normal(-1.1, 2.0).cdf(-lam)  # finite at infinity
    want = (cdf[:-1] - cdf[1:]) / (cdf[0] - cdf[-1])
    close(found, want, rtol=1e-6, atol=1e-9)
    assert found.sum().item() == pytest.approx(1)


def test_training_by_hand():
    """Both points from one x0 and one eps; the weight is the length of the segment on Linear."""
    path, model, x0 = Linear(), random_net(Linear(), "velocity"), points(16)
    loss, gradient = parts(ConsistencyTraining((2, 8)), model, x0, progress=0.0)
    generator = torch.Generator().manual_seed(7)
    u = (1 - torch.rand(16, generator=generator)).double()
    ts = torch.tensor([1, (1 + T_MIN) / 2, T_MIN]).double()
    n = (u > ConsistencyTraining().chances(path, ts)[0]).long()
    t, s, eps = ts[n], ts[n + 1], torch.empty_like(x0).normal_(generator=generator)
    f, target = (consistency_function(model, path.sample(x0, time, eps), time) for time in (t, s))
    model.zero_grad()
    hand = (pseudo_huber(f, target.detach()) / (t - s)).mean()
    hand.backward()
    close(loss, hand)
    for mine, other in zip(gradient, model.parameters(), strict=True):
        close(mine, other.grad, rtol=1e-3, atol=1e-5)  # the net's features of t are of float32
    assert set(n.tolist()) == {0, 1}


def test_training_follows_its_progress():
    model, x0 = random_net(Linear(), "velocity"), points(16)
    early, late = (
        ConsistencyTraining((2, 64))(
            model, x0, generator=torch.Generator().manual_seed(0), progress=progress
        ).item()
        for progress in (0.0, 0.99)
    )
    assert early != pytest.approx(late, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConsistencyDistillation(solver="rk4"), "solver must be one of ddim, euler, heun"),
        (lambda: ConsistencyDistillation(segments=0), "segments must be at least 1; got 0"),
        (lambda: ConsistencyDistillation(t_min=1.0), r"t_min must lie in \[0, 1\); got 1.0"),
        (lambda: ConsistencyTraining((8, 4)), r"segments must be 1 <= first <= last; got \(8, 4\)"),
        (lambda: ConsistencyTraining(std=0), "std must be above 0; got 0"),
        (lambda: ConsistencyTraining(t_min=-0.1), r"t_min must lie in \[0, 1\)"),
        (lambda: ConsistencyTraining().count(1.5), r"progress must lie in \[0, 1\]; got 1.5"),
        (lambda: pseudo_huber(points(), points(), c=0), "c must be above 0; got 0"),
        (lambda: pseudo_huber(points(), points(4)), r"one shape; got \(6, 2\) and \(4, 2\)"),
        (lambda: squared_distance(points(), points(4)), "a and b must have one shape"),
        (
            lambda: ConsistencyDistillation()(MODEL, points()),
            "teacher must be a Denoiser; got None",
        ),
        (
            lambda: ConsistencyDistillation(gaussian(VP(), dim=2))(MODEL, points()),
            r"teacher must be on the student's path Linear\(\); got VP",
        ),
        (lambda: multistep(MODEL, points(), [0.2, 0.5]), "taus must fall, between 1 and t_min"),
        (lambda: multistep(MODEL, points(), [0.001]), "taus must fall, between 1 and t_min"),
        (
            lambda: consistency(MODEL, points(), torch.tensor([1, 0.001, 0])),
            "ts must lie above t_min = 0.002",
        ),
        (lambda: skip_out(VP(), torch.ones(2), "speed"), "a prediction must be one of"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MODEL = random_net(Linear(), "velocity")


@pytest.mark.parametrize(
    "make",
    [
        lambda: consistency_function(nn.Identity(), points(), torch.ones(6)),
        lambda: multistep(nn.Identity(), points()),
        lambda: ConsistencyDistillation(nn.Identity()),
        lambda: ConsistencyTraining()(nn.Identity(), points()),
    ],
)
def test_a_bare_network_is_refused(make):
    with pytest.raises(TypeError, match="must be a Denoiser; got Identity"):
        make()
