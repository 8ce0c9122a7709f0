"""The one loss: stationary at the truth, and equal to its special cases written by hand."""

from functools import partial
from pathlib import Path

import pytest
import torch
from exact import class_mixture, mixture_2d
from torch import nn

from course_lib import VP, DiscreteVP, Linear, NetDenoiser, denoising_loss, linear_betas
from course_lib.cli import train_recipe
from course_lib.objectives import (
    ConditionDropout,
    logit_normal_times,
    low_discrepancy_times,
    min_snr_weight,
    snr_weight,
    uniform_times,
)
from course_lib.training import fit, recipe

FACES = ["noise", "data", "v", "velocity", "score"]


class Perturbed(nn.Module):
    """The exact answer plus a linear error with parameters at zero."""

    def __init__(self, mixture, face):
        super().__init__()
        self.exact = getattr(mixture, face)
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        return self.exact(x, t) + self.shift + x @ self.slope


@pytest.mark.parametrize("weight", [None, snr_weight, min_snr_weight])
@pytest.mark.parametrize("face", FACES)
def test_gradient_is_zero_at_the_exact_mixture_up_to_monte_carlo_error(
    path, face, weight, generator
):
    """Batches of gradients: their mean is within 4.5 standard errors of zero, entry by entry."""
    mixture = mixture_2d(path)
    denoiser = NetDenoiser(Perturbed(mixture, face), path, face)
    with torch.no_grad():  # the input scaling of NetDenoiser must not disturb the exact answer
        denoiser.predict = lambda x, t, cond=None: denoiser.net(x, t, cond)
    parameters = [denoiser.net.shift, denoiser.net.slope]
    gradients = []
    for _ in range(40):
        x0 = mixture.sample(512, generator=generator)
        t = 0.02 + 0.96 * torch.rand(512, generator=generator, dtype=torch.float64)
        loss = denoising_loss(denoiser, x0, t=path.snap(t), weight=weight, generator=generator)
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        gradients.append(flat)
    gradients = torch.stack(gradients)
    standard_error = gradients.std(0) / len(gradients) ** 0.5
    assert (gradients.mean(0).abs() < 4.5 * standard_error).all()
    # and the test has teeth: away from the truth the same statistic is far from zero
    with torch.no_grad():
        denoiser.net.shift += 10.0 if face == "score" and weight is None else 0.3
    x0 = mixture.sample(20_000, generator=generator)
    t = 0.02 + 0.96 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    loss = denoising_loss(denoiser, x0, t=path.snap(t), weight=weight, generator=generator)
    (wrong,) = torch.autograd.grad(loss, [denoiser.net.shift])
    assert (wrong > 4.5 * standard_error[:2]).all()


def fixed(path, face, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 64, 5, generator=generator, dtype=torch.float64)
    t = torch.rand(64, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    net = nn.Linear(5, 5).double()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = net

        def forward(self, x, t, cond=None):
            return self.linear(x)

    return NetDenoiser(Net(), path, face), x0, eps, t


def test_it_is_l_simple_and_flow_matching_by_hand():
    denoiser, x0, eps, t = fixed(VP(), "noise")
    alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    by_hand = ((denoiser.net(alpha * x0 + sigma * eps, t) - eps) ** 2).mean()
    torch.testing.assert_close(denoising_loss(denoiser, x0, t=t, eps=eps), by_hand)
    denoiser, x0, eps, t = fixed(Linear(), "velocity")
    xt = (1 - t[:, None]) * x0 + t[:, None] * eps
    out = denoiser.predict(xt, t)
    by_hand = ((out - (eps - x0)) ** 2).mean()
    torch.testing.assert_close(denoising_loss(denoiser, x0, t=t, eps=eps), by_hand)


@pytest.mark.parametrize("face", FACES)
def test_snr_weight_makes_every_loss_the_noise_loss(face):
    path = VP()
    denoiser, x0, eps, t = fixed(path, face)
    xt = path.sample(x0, t, eps)
    by_noise = ((denoiser.noise(xt, t) - eps) ** 2).mean()
    weighted = denoising_loss(denoiser, x0, t=t, eps=eps, weight=snr_weight)
    torch.testing.assert_close(weighted, by_noise)


def test_min_snr_weights_of_the_paper():
    """Hang et al., section 3.4: min(SNR, g) for data, / SNR for noise, / (SNR + 1) for v."""
    path, t = VP(), torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    torch.testing.assert_close(min_snr_weight(path, t, "data"), snr.clamp(max=5))
    torch.testing.assert_close(min_snr_weight(path, t, "noise"), snr.clamp(max=5) / snr)
    torch.testing.assert_close(min_snr_weight(path, t, "v", gamma=2), snr.clamp(max=2) / (snr + 1))


def test_time_samplers(generator):
    n = 20_000
    grid = (torch.arange(n) + 0.5) / n
    for sampler, tolerance in ((uniform_times, 0.02), (low_discrepancy_times, 1.1 / n)):
        t = sampler(n, generator=generator)
        assert t.shape == (n,)
        assert t.min() > 0
        assert t.max() <= 1
        assert (t.sort().values - grid).abs().max() < tolerance  # Kolmogorov-Smirnov distance
    logits = torch.logit(logit_normal_times(n, mean=-0.5, std=1.2, generator=generator))
    assert logits.mean() == pytest.approx(-0.5, abs=0.04)
    assert logits.std() == pytest.approx(1.2, abs=0.03)


def test_low_discrepancy_lowers_the_variance_of_the_loss():
    mixture = mixture_2d(VP())
    denoiser = NetDenoiser(nn.Module(), VP())
    denoiser.predict = lambda x, t, cond=None: torch.zeros_like(x) + t[:, None]
    eps = torch.zeros(64, 2, dtype=torch.float64)
    x0 = mixture.sample(64, generator=torch.Generator().manual_seed(0))

    def spread(sampler):
        generator = torch.Generator().manual_seed(1)
        losses = [
            denoising_loss(denoiser, x0, t=sampler, eps=eps, generator=generator) for _ in range(50)
        ]
        return torch.stack(losses).std()

    assert spread(low_discrepancy_times) < 0.2 * spread(uniform_times)


def test_discrete_path_is_trained_at_its_own_steps(generator):
    path, seen = DiscreteVP(linear_betas(50)), []
    denoiser = NetDenoiser(nn.Module(), path)
    denoiser.predict = lambda x, t, cond=None: seen.append(t) or x
    denoising_loss(denoiser, torch.zeros(5000, 1), generator=generator)
    steps = seen[0] * 50
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.round().unique().tolist() == list(range(1, 51))


def test_coupling_moves_condition_with_data():
    denoiser, x0, eps, t = fixed(VP(), "noise")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    got = {}
    denoiser.predict = lambda x, t, cond=None: got.update(x=x, cond=cond) or x
    labels = torch.arange(64)
    denoising_loss(
        denoiser, x0, labels, t=t, eps=eps, coupling=lambda x, e, c, **_: (x[order], e, c[order])
    )
    torch.testing.assert_close(got["x"], VP().sample(x0[order], t, eps))
    assert torch.equal(got["cond"], order)


def test_generator_decides_everything_and_global_state_is_left_alone():
    denoiser, x0, *_ = fixed(VP(), "v")
    state = torch.get_rng_state()
    losses = [
        denoising_loss(denoiser, x0, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(state, torch.get_rng_state())
    assert denoising_loss(denoiser, x0, t=partial(logit_normal_times, std=0.5)).isfinite()


def test_given_times_are_checked():
    denoiser, x0, eps, t = fixed(VP(), "noise")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        denoising_loss(denoiser, x0, t=t + 1, eps=eps)
    with pytest.raises(ValueError, match="eps must have"):
        denoising_loss(denoiser, x0, t=t, eps=eps[:3])


def test_bare_networks_and_bytes_are_refused():
    denoiser, x0, *_ = fixed(VP(), "noise")
    with pytest.raises(TypeError, match=r"got Linear: a network becomes one by NetDenoiser"):
        denoising_loss(nn.Linear(5, 5), x0)
    with pytest.raises(TypeError, match=r"images in \[-1, 1\]\); got torch.uint8"):
        denoising_loss(denoiser, x0.to(torch.uint8))


def seen_conditions(cond, p, seed=0, n=20_000):
    """What the inner objective is given."""
    seen = []

    def objective(denoiser, x0, cond, *, generator, **options):
        seen.append((cond, options))
        return x0.sum()

    class Model(nn.Module):
        def null_condition(self, cond):
            if isinstance(cond, tuple):
                return cond[0], torch.zeros_like(cond[1])
            return torch.full_like(cond, 10)

    generator = torch.Generator().manual_seed(seed)
    dropout = ConditionDropout(p, objective)
    dropout(Model(), torch.zeros(n, 2), cond, generator=generator, weight=snr_weight)
    ((cond, options),) = seen
    assert options == {"weight": snr_weight}
    return cond


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_hides_the_stated_part_of_the_conditions(p):
    n = 20_000
    labels = torch.arange(n) % 10
    got = seen_conditions(labels, p)
    hidden = got == 10
    assert torch.equal(got[~hidden], labels[~hidden])
    assert abs(hidden.sum().item() - n * p) < 4 * (n * p * (1 - p)) ** 0.5  # binomial
    of_class = labels[hidden].bincount(minlength=10)
    assert (of_class - n * p / 10).abs().max() < 4 * (n * p * (1 - p) / 10) ** 0.5
    assert torch.equal(got, seen_conditions(labels, p))
    assert not torch.equal(got, seen_conditions(labels, p, seed=1))


def test_dropout_of_none_and_of_all():
    labels = torch.arange(20) % 10
    assert torch.equal(seen_conditions(labels, 0.0, n=20), labels)
    assert seen_conditions(labels, 1.0, n=20).tolist() == [10] * 20


def test_dropout_hides_all_parts_of_a_sample():
    tokens, mask = torch.arange(300.0).reshape(50, 3, 2), torch.ones(50, 3, dtype=torch.bool)
    got = seen_conditions((tokens, mask), 0.4, n=50)
    assert torch.equal(got[0], tokens)
    hidden = ~got[1].any(1)
    assert 5 < hidden.sum() < 35
    assert torch.equal(got[1], ~hidden[:, None].expand(50, 3))


class Shifted(nn.Module):
    """The exact data prediction, but for an error of each label; label 3 is none."""

    def __init__(self, mixture):
        super().__init__()
        self.exact = mixture
        self.error = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        return self.exact.data(x, t, cond) + self.error[cond][:, None]

    def null_condition(self, cond):
        return self.exact.null_condition(cond)


def test_dropout_trains_both_models_at_once(generator):
    """The exact mixture makes the loss stationary, for every label and for none."""
    mixture = class_mixture(VP())
    denoiser = NetDenoiser(Shifted(mixture), VP(), "data")
    weights = torch.tensor([0.55, 0.25, 0.2], dtype=torch.float64)

    def gradient():
        labels = torch.multinomial(weights, 512, replacement=True, generator=generator)
        x0 = mixture.sample(512, generator=generator, cond=labels)
        loss = ConditionDropout(0.3)(denoiser, x0, labels, generator=generator)
        return torch.autograd.grad(loss, denoiser.net.error)[0]

    gradients = torch.stack([gradient() for _ in range(40)])
    standard_error = gradients.std(0) / len(gradients) ** 0.5
    assert (gradients.mean(0).abs() < 4.5 * standard_error).all()
    with torch.no_grad():
        denoiser.net.error += 1.0
    # The slope of (1 + error)^2 is 2, shared out by how often each label is seen.
    expected = 2 * torch.cat([0.7 * weights, torch.tensor([0.3]).double()])
    torch.testing.assert_close(gradient(), expected, rtol=0.3, atol=0)


def test_dropout_is_seeded_and_refuses_what_it_cannot_use():
    denoiser = NetDenoiser(Shifted(class_mixture(VP())), VP(), "data")
    x0, cond = torch.zeros(8, 2, dtype=torch.float64), torch.arange(8) % 3
    state = torch.get_rng_state()
    losses = [
        ConditionDropout(0.5)(denoiser, x0, cond, generator=torch.Generator().manual_seed(s)).item()
        for s in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="needs a condition to hide"):
        ConditionDropout()(denoiser, x0, None)
    with pytest.raises(ValueError, match="no condition that means none"):
        ConditionDropout()(fixed(VP(), "noise")[0], x0, cond)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
            ConditionDropout(p)


def test_dropout_in_a_recipe_is_dropout_in_fit(tiny):
    parser = recipe.recipe_parser(Path(tiny))
    config = parser.parse_args(["--fit.steps", "3"])
    model = recipe.build_model(config.model.as_dict(), config.fit.seed)
    by_recipe = train_recipe(config)
    options = {"steps": 3, "batch_size": 16, "ema": 0.9, "progress": False}
    expected = fit(
        model, recipe.recipe_data("digits", "train"), objective=ConditionDropout(0.3), **options
    )
    assert torch.equal(by_recipe.losses, expected.losses)
    rate = ["--fit.steps", "3", "--fit.objective.init_args.p", "0.75"]
    other = train_recipe(parser.parse_args(rate))
    assert not torch.equal(by_recipe.losses, other.losses)


def test_a_run_is_not_continued_with_another_rate(tmp_path):
    data = (
        torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double(),
        torch.arange(8) % 3,
    )

    def run(rate, **others):
        denoiser = NetDenoiser(Shifted(class_mixture(VP())), VP(), "data")
        objective = ConditionDropout(rate, partial(denoising_loss, **others))
        options = {"steps": 2, "progress": False, "checkpoint": tmp_path}
        return fit(denoiser, data, objective=objective, **options)

    assert torch.equal(run(0.1).losses, run(0.1).losses)  # the second finds itself finished
    with pytest.raises(ValueError, match=r"p=0\.1.*p=0\.2|p=0\.2.*p=0\.1"):
        run(0.2)
    with pytest.raises(ValueError, match="snr_weight"):
        run(0.1, weight=snr_weight)
