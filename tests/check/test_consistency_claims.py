"""What the exercises on consistency models claim in words or numbers, measured."""

import math

import pytest
import torch

from course_lib.check import consistency
from course_lib.check.questions import normal
from course_lib.denoisers import GaussianMixture, NetDenoiser
from course_lib.distillation import (
    ConsistencyDistillation,
    ProgressiveLoss,
    consistency_function,
    pseudo_huber,
)
from course_lib.objectives import uniform_times
from course_lib.paths import VE, CosineVP, Linear
from course_lib.samplers import dopri5

LOW = 0.05


def times(count, value):
    return torch.full((count,), value, dtype=torch.float64)


def round_normal(std, size=1):
    """The exact denoiser of data N(0, std^2) in each coordinate, on the straight path."""
    cov = std**2 * torch.eye(size).double()
    return GaussianMixture(
        torch.zeros(1, size).double(), cov[None], torch.ones(1).double(), Linear()
    )


TILTED = torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()


def ends_of(path, x, t, function=None):
    """Where the paths through x at t end at LOW, for data N(0, TILTED)."""
    low, t = torch.tensor(LOW).double(), times(len(x), t)
    a_min, s_min = path.alpha(low).item(), path.sigma(low).item()
    function = function or consistency._gaussian()
    return function(x, path.alpha(t), path.sigma(t), a_min, s_min, TILTED)


def tilted(path):
    """The exact denoiser of data N(0, TILTED)."""
    return GaussianMixture(torch.zeros(1, 2).double(), TILTED[None], torch.ones(1).double(), path)


@pytest.mark.parametrize("path", [Linear(), CosineVP(), VE(0.02, 20.0)])
def test_the_consistency_function_of_a_gaussian_is_where_the_flow_ends(path):
    """Exercise consistency_gaussian: a solver from t = 0.9, and asked again on the way."""
    x = path.sigma(torch.tensor(0.9).double()) * normal(0)(6, 2)
    states, grid = [x], torch.tensor([0.9, 0.5, 0.2, LOW]).double()
    exact = tilted(path)
    dopri5(exact, x, grid, rtol=1e-9, atol=1e-9, callback=lambda i, s, y: states.append(y))
    for t, state in zip(grid, states, strict=True):
        made = ends_of(path, state, t.item())
        torch.testing.assert_close(made, states[-1], rtol=1e-6, atol=1e-7)


def test_triangular_roots_give_the_right_distribution_at_other_points():
    """Exercise consistency_gaussian: a map of x_t to x_min that is not the flow."""
    path, one = Linear(), torch.eye(2).double()
    flow, other = (
        ends_of(path, one, 0.7, f).T for f in (consistency._gaussian(), consistency._by_cholesky)
    )
    now, then = ((1 - t) ** 2 * TILTED + t**2 * one for t in (0.7, LOW))
    for matrix in (flow, other):
        torch.testing.assert_close(matrix @ now @ matrix.T, then)
    assert (flow - other).abs().max() > 0.1
    torch.testing.assert_close(flow, flow.T)  # it does not turn


def test_one_exact_step_from_pure_noise_leaves_almost_nothing():
    """Exercise consistency_gaussian: t_min x on the straight path."""
    x = normal(0)(6, 2)
    step = consistency._by_posterior(lambda a_min, s_min: (a_min, s_min))
    torch.testing.assert_close(ends_of(Linear(), x, 1.0, step), LOW * x)
    by_library = consistency_function(tilted(Linear()), x, times(6, 1.0), t_min=LOW)
    torch.testing.assert_close(by_library, LOW * x)
    assert ends_of(Linear(), x, 1.0).std() > 0.4 * x.std()


def test_the_boundary_is_built_in_for_velocity_and_v_too():
    """Exercise ddim_boundary."""
    draw, t = normal(0), torch.tensor([0.1, 0.4, 0.7, 0.9]).double()
    x0, eps, f = draw(4, 3), draw(4, 3), consistency._bounded()
    x = (1 - t)[:, None] * x0 + t[:, None] * eps
    made = f(x, eps, 1 - t, t, 1 - LOW, LOW)
    torch.testing.assert_close(made, x - (t - LOW)[:, None] * (eps - x0))
    a, s, d = t.cos(), t.sin(), (t - LOW)[:, None]
    x, v = a[:, None] * x0 + s[:, None] * eps, a[:, None] * eps - s[:, None] * x0
    made = f(x, eps, a, s, math.cos(LOW), math.sin(LOW))
    torch.testing.assert_close(made, d.cos() * x - d.sin() * v)


@pytest.mark.parametrize(
    ("wrong", "loss", "gradient"),
    [
        ({}, 0.0625, -0.25),
        ({"hold": (False, False)}, 0.0625, -0.125),
        ({"target": lambda f, x, t, y, s: f(y, t)}, 0.0, 0.0),
    ],
    ids=["right", "a target that moves", "the wrong time"],
)
def test_a_target_that_moves_gives_half_of_the_gradient(wrong, loss, gradient):
    """Exercise consistency_loss: the numbers of the example."""
    one = torch.ones(1, 1)
    got = consistency._held(**wrong)(
        lambda weights, x, t: x * (1 + (weights - 1) * t),
        torch.zeros(1),
        lambda x, t, s: x,
        *(one, one, 0.5 * one[0], 0.25 * one[0]),
    )
    assert [got[0].item(), got[1].item()] == pytest.approx([loss, gradient])


def test_the_loss_is_that_of_the_library_without_its_weight():
    """Exercise consistency_loss: the draws of the library, which sums over the two coordinates."""
    student, teacher = (
        NetDenoiser(lambda x, t, cond: x.sin(), Linear(), "velocity"),
        tilted(Linear()),
    )
    library = ConsistencyDistillation(teacher, "euler", 8, t_min=0.0, weighted=False)
    x0 = normal(0)(64, 2)
    theirs = library(student, x0, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    k = (uniform_times(64, generator=generator).double() * 8).ceil()
    t, s = 1 - (k - 1) / 8, 1 - k / 8
    eps = torch.empty_like(x0).normal_(generator=generator)
    loss, _ = consistency._held()(
        lambda weights, x, t: weights * consistency_function(student, x, t, t_min=0.0),
        torch.ones(1).double(),
        lambda x, t, s: x + (s - t)[:, None] * teacher.velocity(x, t),
        *(x0, eps, t, s),
    )
    torch.testing.assert_close(loss, theirs / 2)


def test_pseudo_huber_is_that_of_the_library():
    a, b = (normal(seed)(5, 1, 4, 4) for seed in (0, 1))
    torch.testing.assert_close(consistency._huber()(a, b), pseudo_huber(a, b))


def test_pseudo_huber_is_a_distance_far_away_and_a_square_nearby():
    """Exercise pseudo_huber; c is 0.015 for a digit, and the gradient at 0 is no NaN."""
    right, plain = consistency._huber(), consistency._huber(lambda q, c: q.sqrt())
    a, gap = torch.zeros(1, 784).double(), torch.ones(1, 784).double() / 28
    c = consistency.HUBER * 28
    assert c == pytest.approx(0.015, abs=5e-4)
    assert right(a, a + 100 * gap).item() == pytest.approx(100 - c, abs=1e-5)
    assert right(a, a + 1e-4 * gap).item() == pytest.approx(1e-8 / (2 * c), rel=1e-4)
    for distance, fine in ((right, True), (plain, False)):
        b = a.clone().requires_grad_()
        distance(a, b).sum().backward()
        assert torch.equal(b.grad, torch.zeros_like(b)) == fine
        assert b.grad.isnan().any().item() != fine


def test_the_cleaner_state_is_an_euler_step_from_the_other():
    """Exercise training_pair; the mean of its velocity is the flow's, for Gaussian data."""
    draw = normal(0)
    x0, eps, ts = draw(8, 2), draw(8, 2), torch.tensor([0.1, 0.3, 0.6]).double()
    n = torch.tensor([0, 1] * 4)
    upper, lower, weight = consistency._twice()(x0, eps, n, ts)
    torch.testing.assert_close(lower, upper - (eps - x0) / weight[:, None])

    x0, eps = 0.5 * draw(200_000, 1), draw(200_000, 1)
    x = 0.7 * x0 + 0.3 * eps
    slope = (x * (eps - x0)).mean() / x.square().mean()
    one = torch.ones(1, 1).double()
    flow = round_normal(0.5).velocity(one, times(1, 0.3))
    assert slope.item() == pytest.approx(flow.item(), abs=0.02)


def test_stages_of_the_curriculum():
    """Exercise doubling_curriculum: eight stages of 50,000 steps, 11 to 1281 borders."""
    right = consistency._doubled()
    unbound = consistency._doubled(end=lambda n, s1: n + 1)
    k = torch.arange(0, 400_000, 1000)
    n = right(k, 400_000, 10, 1280)
    values, counts = n.unique_consecutive(return_counts=True)
    assert values.tolist() == [10 * 2**i + 1 for i in range(8)]
    assert counts.tolist() == [50] * 8
    assert torch.equal(n, unbound(k, 400_000, 10, 1280))
    for steps, s0, s1 in ((400_007, 10, 1280), (700, 2, 6)):
        last = torch.tensor([steps - 1])
        assert right(last, steps, s0, s1).item() == s1 + 1 < unbound(last, steps, s0, s1).item()


def test_several_exact_calls_keep_the_spread_and_the_code_with_bugs_does_not():
    """Exercise multistep: data N(0, 1)."""

    def exact(x, t):
        low = (1 - 0.002) ** 2 + 0.002**2
        return x * (low / ((1 - t) ** 2 + t**2)).sqrt()[:, None]

    draw, taus = normal(0), torch.tensor([0.75, 0.5, 0.25]).double()
    args = (exact, draw(100_000, 1), taus, draw(3, 100_000, 1), 0.002)
    still = consistency._calls(
        lambda tau, low: 1, lambda tau, low: 0.1, lambda taus: taus.flip(0), late=True
    )
    assert consistency._calls()(*args).std().item() == pytest.approx(1, abs=0.01)
    assert still(*args).std().item() > 2
    first = consistency._calls(order=lambda taus: taus[:0])(*args)
    assert first.std().item() == pytest.approx(1, abs=0.01)
    late = consistency._calls(late=True)(*args).std().item()  # left at t = 0.25
    assert late == pytest.approx(math.hypot(0.75, 0.25), abs=0.03)


@pytest.mark.parametrize("path", [Linear(), CosineVP()])
def test_fresh_noise_makes_a_state_of_the_later_time(path):
    """Exercise multistep: the factors of any path, and the same as in the solution on this one."""
    low, tau = torch.tensor(0.05).double(), torch.tensor(0.4).double()
    shrink = path.alpha(tau) / path.alpha(low)
    missing = path.sigma(tau) ** 2 - shrink**2 * path.sigma(low) ** 2
    made = shrink**2 * (path.alpha(low) ** 2 * 0.3 + path.sigma(low) ** 2) + missing
    torch.testing.assert_close(made, path.alpha(tau) ** 2 * 0.3 + path.sigma(tau) ** 2)
    if isinstance(path, Linear):
        torch.testing.assert_close(shrink, consistency._keep(tau, 0.05))
        torch.testing.assert_close(missing.sqrt(), consistency._fresh(tau, 0.05))


def test_further_calls_mend_a_function_that_errs_at_large_noise():
    """Exercise multistep: one that is right below t = 0.6, and a blur above."""

    def rough(x, t):
        low = (1 - 0.002) ** 2 + 0.002**2
        factor = (low / ((1 - t) ** 2 + t**2)).sqrt() * torch.where(t > 0.6, 0.5, 1.0)
        return x * factor[:, None]

    draw = normal(0)
    eps, z = draw(100_000, 1), draw(2, 100_000, 1)
    spreads = [
        consistency._calls()(rough, eps, torch.tensor(taus).double(), z[: len(taus)], 0.002).std()
        for taus in ((), (0.5,), (0.5, 0.5))
    ]
    assert spreads[0] < 0.51
    assert 1 > spreads[2] > spreads[1] > 0.75


def test_the_later_prediction_counts_more():
    """Exercise progressive_target: (t b + s a) / (t + s), and the formula of any path."""
    draw, guess, step = normal(0), consistency._Guess(), 0.25
    x, t = draw(4, 2), torch.tensor([0.25, 0.5, 0.8, 1.0]).double()
    target = consistency._two_steps()(guess, x, t, step)
    a, middle, s = guess(x, t), t - step / 2, t - step
    b = guess(consistency._ddim_line(x, a, t, middle), middle)
    now, end = t[:, None], s[:, None]
    torch.testing.assert_close(target, (now * b + end * a) / (now + end))
    landed = consistency._two_steps(lambda x, y, z, a, b, t, s, h: z)(guess, x, t, step)
    ratio = end / now
    torch.testing.assert_close(target, (landed - ratio * x) / ((1 - end) - ratio * (1 - now)))


def test_the_target_is_that_of_the_library():
    """Exercise progressive_target, with an exact teacher."""
    teacher, x, t = tilted(Linear()), normal(0)(4, 2), torch.tensor([0.25, 0.5, 0.8, 1.0]).double()
    made = consistency._two_steps()(teacher.data, x, t, 0.25)
    library = ProgressiveLoss(teacher).target(teacher, x, t, t - 0.125, t - 0.25)
    torch.testing.assert_close(made, library)


def test_the_exact_average_velocity_is_its_own_target():
    """Exercise mean_flow_target: data N(0, 0.5^2); the target is linear in v."""
    draw = normal(0)
    z, r, t = draw(4, 2), times(4, 0.2), torch.tensor([0.3, 0.5, 0.8, 1.0]).double()

    def u(z, r, t):
        now, then = ((1 - c) ** 2 * 0.25 + c**2 for c in (t, r))
        return (1 - (then / now).sqrt())[:, None] / (t - r)[:, None] * z

    target = consistency._identity()
    v = round_normal(0.5, 2).velocity(z, t)
    torch.testing.assert_close(target(u, z, r, t, v), u(z, r, t))
    one, other = draw(4, 2), draw(4, 2)
    mean = (target(u, z, r, t, one) + target(u, z, r, t, other)) / 2
    torch.testing.assert_close(target(u, z, r, t, (one + other) / 2), mean)


def test_one_step_of_a_denoiser_has_no_variance_and_two_have_0_39():
    """Exercise blur_experiment; with two points the second step gives tanh of the noise."""
    points = consistency._Points((-1.0, 1.0), (0.5, 0.5))
    nodes = torch.special.ndtri((torch.arange(20_000).double() + 0.5) / 20_000)
    found = [consistency._walk(points, nodes, n).var(correction=0).item() for n in (1, 2, 4, 8)]
    assert found[0] == pytest.approx(0, abs=1e-20)
    assert found[1] == pytest.approx(nodes.tanh().square().mean().item(), rel=1e-6)
    assert found[1] == pytest.approx(0.39, abs=0.006)
    assert found[1] < found[2] < found[3] < 1.001
    assert torch.equal(points.flow(nodes), nodes.sign())
    x, half = nodes / 2, times(len(nodes), 0.5)
    torch.testing.assert_close(points(x, half), nodes.tanh())
    verdict = consistency.blur_experiment.run(consistency._blurred())
    assert "two give 0.3" in dict(verdict.details)["What you found"]
    assert "as you predicted" in dict(verdict.details)["What you found"]
