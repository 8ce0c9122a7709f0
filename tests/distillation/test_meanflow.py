"""Mean flows against the exact average velocity of N(0, std^2), and derivatives by differences."""

import pytest
import torch
from exact import mixture_2d
from test_consistency import close, gaussian, points, spread
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib import VP, ClassifierFreeGuidance, Linear, NetDenoiser, denoising_loss
from course_lib.distillation import IntervalDenoiser, MeanFlowLoss, mean_flow, mean_flow_sample
from course_lib.nets import MLP, DiT, UNet
from course_lib.samplers import sample
from course_lib.training import fit

STD = 0.5


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


class ExactMean(IntervalDenoiser):
    """u(z, r, t) z / (t - r) of data N(0, STD^2); the limit at r = t is the velocity."""

    def __init__(self):
        super().__init__(MLP(1, 4, 1), Linear())
        self.flow = gaussian(self.path, STD)

    def std(self):
        return STD

    def predict(self, xt, t, cond=None, r=None):
        if r is None:
            return self.flow.velocity(xt, t)
        end = xt * (spread(self.path, r, self.std()) / spread(self.path, t, self.std()))[:, None]
        return (xt - end) / (t - r)[:, None]


class Fitted(ExactMean):
    """The same with a standard deviation that is learned, at first 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Module()
        self.net.std = nn.Parameter(torch.ones((), dtype=torch.float64))

    def std(self):
        return self.net.std


def small(net=None, path=None):
    """A double network whose output is not zero, and that sees the length of an interval."""
    torch.manual_seed(0)
    model = IntervalDenoiser(net or MLP(2, 8, 1), path or Linear(), 0.7).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_the_identity_holds_for_the_exact_average():
    model, x0 = ExactMean(), gaussian(Linear(), STD).sample(64)
    exact = MeanFlowLoss(model.flow, instant=0.0, p=0.0)
    generator = torch.Generator().manual_seed(0)
    assert exact(model, x0, generator=generator).item() == pytest.approx(0, abs=1e-20)
    pairs = MeanFlowLoss(instant=0.0, p=0.0)
    assert pairs(model, x0, generator=generator).item() > 0.1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: MLP(2, 8, 1, num_classes=3), (2,)),
        (lambda: DiT(4, patch=2, dim=8, depth=1, heads=2, num_classes=3), (1, 4, 4)),
        (lambda: UNet(width=8, multipliers=(1, 2), heads=2, num_classes=3), (1, 4, 4)),
    ],
    ids=["MLP", "DiT", "UNet"],
)
@pytest.mark.parametrize("path", [Linear(), VP()], ids=str)
def test_the_derivative_along_the_path(net, shape, batch, path):
    model, cond = small(net(), path), torch.arange(batch) % 3
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, batch, *shape, dtype=torch.float64, generator=generator)
    r, t = times(0.1, 0.3, 0.2)[:batch], times(0.9, 0.4, 0.7)[:batch]
    u, slope = MeanFlowLoss().slope(model, z, r, t, v, cond)
    h = 1e-6
    later, sooner = (model.average(z + d * v, r, t + d, cond) for d in (h, -h))
    close(slope, (later - sooner) / (2 * h), rtol=1e-5, atol=1e-6)
    close(u, model.average(z, r, t, cond))
    assert slope.abs().min() > 0


def test_the_loss_and_its_gradient_by_hand():
    """No gradient reaches the target or the weight; draws in the order of the objective."""
    model, x0 = small(), points(16)
    objective = MeanFlowLoss(instant=0.5, p=0.75, c=0.01)
    loss = objective(model, x0, generator=torch.Generator().manual_seed(7))
    loss.backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(7)
    r, t = objective.times(16, generator=generator).double()
    eps = torch.empty_like(x0).normal_(generator=generator)
    z, v, h = model.path.sample(x0, t, eps), eps - x0, 1e-6
    with torch.no_grad():
        later, sooner = (model.average(z + d * v, r, t + d) for d in (h, -h))
        target = v - (t - r)[:, None] * (later - sooner) / (2 * h)
        weight = ((model.average(z, r, t) - target).square().sum(1) + 0.01) ** -0.75
    model.zero_grad()
    hand = (weight * (model.average(z, r, t) - target).square().sum(1)).mean()
    hand.backward()
    close(loss, hand, rtol=1e-6, atol=1e-6)
    for mine, other in zip(gradient, model.parameters(), strict=True):
        close(mine, other.grad, rtol=1e-4, atol=1e-6)


def test_times():
    r, t = MeanFlowLoss(instant=0.75).times(20_000, generator=torch.Generator().manual_seed(0))
    assert bool((r <= t).all())
    assert (r == t).float().mean().item() == pytest.approx(0.75, abs=0.013)
    # The larger of two is above the median of one three times in four.
    above = (t > torch.sigmoid(torch.tensor(-0.4))).float().mean().item()
    assert above == pytest.approx(0.75, abs=0.013)
    r, t = MeanFlowLoss(instant=0.0).times(100)
    assert bool((r < t).all())
    assert bool(torch.eq(*MeanFlowLoss(instant=1.0).times(100)).all())


@pytest.mark.parametrize("distilled", [True, False])
def test_a_gaussian_is_learned(distilled):
    teacher = gaussian(Linear(), STD)
    x0 = teacher.sample(4000, generator=torch.Generator().manual_seed(0))
    objective = MeanFlowLoss(teacher if distilled else None, instant=0.0)
    model = fit(Fitted(), x0, objective=objective, steps=200, batch_size=256, lr=0.05, ema=0.9,
                lr_schedule="cosine", progress=False)  # fmt: skip
    one = torch.ones(1, 1, dtype=torch.float64)
    tolerance = 0.001 if distilled else 0.1  # without teacher the noise of single pairs is left
    assert mean_flow_sample(model, one).item() == pytest.approx(STD, rel=tolerance)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_average_needs_one_step(steps):
    eps = points(5, 1)
    close(mean_flow_sample(ExactMean(), eps, steps), STD * eps)


def test_sample_takes_the_solver():
    model = small()
    drawn = sample(model, (4, 2), solver=mean_flow, steps=2, seed=1, return_trajectory=True)
    half = drawn[0] - 0.5 * model.average(drawn[0], times(*[0.5] * 4), times(*[1.0] * 4))
    close(drawn[1], half)
    close(drawn[2], half - 0.5 * model.average(half, times(*[0.0] * 4), times(*[0.5] * 4)))
    close(drawn[2], mean_flow_sample(model, drawn[0], 2))


def test_as_a_denoiser_it_is_the_flow():
    model, x, t = small(), points(), times(*[0.6] * 6)
    close(model.velocity(x, t), model.average(x, t, t))
    assert (model.velocity(x, t) - model.average(x, t / 2, t)).abs().min() > 0


def test_it_begins_with_a_flow():
    """Nearly: its features of time are gentler, and the last layer of them is solved for."""
    torch.manual_seed(0)
    flow = NetDenoiser(MLP(2, 32, 1, num_classes=3), Linear(), "velocity", 0.7)
    nn.init.normal_(flow.net.out.weight)
    x0, labels = torch.randn(500, 2), torch.arange(500) % 3
    flow = fit(flow, (x0, labels), objective=denoising_loss, steps=100, lr=3e-3, progress=False)
    model = IntervalDenoiser(MLP(2, 32, 1, num_classes=3), Linear(), 0.7)
    model.begin_with(flow)
    x, t, cond = points(60).float(), torch.linspace(0, 1, 60), torch.arange(60) % 3
    with torch.no_grad():
        given, wanted = model.average(x, t / 2, t, cond), flow.velocity(x, t, cond)
    assert (given - wanted).norm() < 0.1 * wanted.norm()
    assert torch.equal(model.null_condition(cond), flow.null_condition(cond))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.begin_with(NetDenoiser(MLP(2, 10, 1, num_classes=3), Linear(), "velocity"))


def test_its_features_of_time_are_gentle():
    """Else the derivative in t, a part of the target, would drown the rest."""
    torch.manual_seed(0)
    model = IntervalDenoiser(MLP(2, 64, 2), Linear())
    nn.init.normal_(model.net.out.weight)
    x, t = points(64).float(), torch.linspace(0.05, 0.95, 64)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    u, slope = jvp(lambda t: model.average(x, zero, t), (t,), (one,))
    assert slope.norm() < 5 * u.norm()
    model.net.condition.inner.rate = 1000.0
    u, slope = jvp(lambda t: model.average(x, zero, t), (t,), (one,))
    assert slope.norm() > 20 * u.norm()


def test_fused_attention_is_put_back():
    """The plain kernel is asked for in the loss alone."""
    model = small(DiT(4, patch=2, dim=8, depth=1, heads=2))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        MeanFlowLoss()(model, torch.zeros(2, 1, 4, 4, dtype=torch.float64)).backward()
        assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MeanFlowLoss(instant=1.5), ValueError, r"instant must lie in \[0, 1\]; got 1.5"),
        (lambda: MeanFlowLoss(std=0), ValueError, "std must be above 0; got 0"),
        (lambda: MeanFlowLoss(c=0), ValueError, "c must be above 0; got 0"),
        (lambda: MeanFlowLoss(nn.Identity()), TypeError, "must be a Denoiser; got Identity"),
        (lambda: MeanFlowLoss()(FLOW, points()), TypeError, "MeanFlowLoss needs an IntervalDen"),
        (
            lambda: MeanFlowLoss(mixture_2d(VP()))(small(), points()),
            ValueError,
            "teacher must be on the student's path",
        ),
        (lambda: mean_flow_sample(FLOW, points()), TypeError, "mean_flow_sample needs an Interval"),
        (
            lambda: sample(ClassifierFreeGuidance(small(), 2.0), (2, 2), solver=mean_flow),
            TypeError,
            "without guidance; got ClassifierFreeGuidance",
        ),
        (lambda: mean_flow_sample(small(), points(), 0), ValueError, "steps must be at least 1"),
        (lambda: IntervalDenoiser(nn.Identity(), Linear()), TypeError, "a UNet, DiT or MLP; got"),
    ],
)
def test_what_cannot_be_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


FLOW = mixture_2d(Linear())
