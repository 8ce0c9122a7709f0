"""The score flow: a Denoiser like every other, with a density."""

import math

import pytest
import torch
from exact import PATHS

import course_lib.flows
from course_lib import (
    VE,
    VP,
    ClassifierFreeGuidance,
    GaussianMixture,
    Linear,
    NegativePrompt,
    NetDenoiser,
)
from course_lib.flows import (
    Flow,
    FlowDiffusionEngine,
    LikelihoodAt,
    NormalizingFlow,
    ScoreFlowNetwork,
    TransformerFlow,
    direct,
    flow_likelihood,
    flow_score_matching,
)
from course_lib.nets import MLP
from course_lib.objectives import denoising_loss, snr_weight
from course_lib.samplers import SOLVERS, log_likelihood, sample
from course_lib.training import fit


class GaussianFlow(Flow):
    """x = mean + exp(log_std) z, the two being linear in the condition: enough for N(m, s^2)."""

    def __init__(self, shape=(2,), cond_dim=6):
        super().__init__()
        self.shape, self.cond_dim = shape, cond_dim
        numbers = math.prod(shape)
        self.mean = torch.nn.Linear(cond_dim, numbers)
        self.log_std = torch.nn.Linear(cond_dim, numbers)

    def _both(self, cond):
        return (layer(cond).unflatten(1, self.shape) for layer in (self.mean, self.log_std))

    def forward(self, z, cond=None):
        mean, log_std = self._both(cond)
        return mean + log_std.exp() * z, log_std.flatten(1).sum(1)

    def inverse(self, x, cond=None):
        mean, log_std = self._both(cond)
        return (x - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)


def score_flow(path=None, shape=(2,), seed=0, **options):
    torch.manual_seed(seed)
    return ScoreFlowNetwork(GaussianFlow(shape), path or VP(), **options).double()


def transformer_score_flow(num_classes=None):
    torch.manual_seed(0)
    flow = TransformerFlow(4, patch=2, dim=8, n_blocks=2, depth=1, heads=2, cond_dim=6)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return ScoreFlowNetwork(flow, VE(0.1, 5.0), num_classes=num_classes, data_std=0.5).double()


def points(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(n, t=0.4):
    return torch.full((n,), t, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_score_is_the_slope_of_log_prob(path):
    denoiser, x, t, h = score_flow(path, data_std=0.7), points(3, 2), times(3), 1e-5
    steps = h * torch.eye(2, dtype=torch.float64)
    slopes = [(denoiser.log_prob(x + s, t) - denoiser.log_prob(x - s, t)) / (2 * h) for s in steps]
    torch.testing.assert_close(denoiser.score(x, t), torch.stack(slopes, 1))


def test_the_score_of_a_transformer_flow_is_the_slope_of_log_prob():
    denoiser, x, t = transformer_score_flow(), points(2, 1, 4, 4), times(2)
    direction, h = points(2, 1, 4, 4, seed=2), 1e-5
    slope = (denoiser.log_prob(x + h * direction, t) - denoiser.log_prob(x - h * direction, t)) / (
        2 * h
    )
    got = (denoiser.score(x, t) * direction).flatten(1).sum(1)
    torch.testing.assert_close(got, slope)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_data_prediction_is_tweedies(path):
    denoiser, x, t = score_flow(path), points(3, 2), times(3)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    expected = (x + sigma**2 * denoiser.score(x, t)) / alpha
    torch.testing.assert_close(denoiser.data(x, t), expected)


def test_the_density_at_any_noise_level_integrates_to_one():
    denoiser = score_flow(VE(0.3, 3.0), data_std=0.6)
    line = torch.linspace(-25, 25, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    for t in (0.0, 0.5, 1.0):
        mass = denoiser.log_prob(grid, times(len(grid), t)).exp().sum() * (line[1] - line[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=1e-3)


def test_it_works_under_no_grad_and_says_what_to_do_under_inference_mode():
    denoiser, x, t = score_flow(), points(3, 2), times(3)
    expected = denoiser.score(x, t)
    assert expected.requires_grad  # to be trained
    with torch.no_grad():
        got = denoiser.score(x, t)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected.detach())
    with torch.inference_mode(), pytest.raises(ValueError, match=r"use torch.no_grad\(\)"):
        denoiser.score(x, t)


@pytest.mark.parametrize("make", [score_flow, transformer_score_flow])
def test_gradients_of_the_score_reach_every_weight(make):
    denoiser = make()
    x0 = points(5, 2) if make is score_flow else points(5, 1, 4, 4)
    flow_score_matching(denoiser, x0, generator=torch.Generator().manual_seed(0)).backward()
    missing = [name for name, p in denoiser.named_parameters() if p.grad is None]
    shifts = {f"flow.layers.{i}.blocks.0.out.bias" for i in range(2)}
    assert not set(missing) - shifts


def test_gradients_reach_x_for_the_divergence_of_its_ode():
    """The exact likelihood of the ODE's samples, beside the flow's own: both of one Gaussian."""
    denoiser = score_flow(VE(0.3, 3.0))
    with torch.no_grad():  # N(0, 1.5^2 + sigma^2) at every t, exactly
        for p in denoiser.flow.parameters():
            p.zero_()
    denoiser.data_std = 1.5
    x0 = points(4, 2)
    ode = log_likelihood(denoiser, x0, torch.linspace(1, 0, 60, dtype=torch.float64),
                         prior=lambda x: denoiser.log_prob(x, times(len(x), 1.0)))  # fmt: skip
    torch.testing.assert_close(ode, denoiser.log_prob(x0, times(4, 0.0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_it(solver):
    denoiser = score_flow(VP(), num_classes=3)
    cond = torch.tensor([0, 1, 2, 3])
    x = sample(denoiser, (4, 2), solver=solver, steps=4, cond=cond)
    assert x.shape == (4, 2)
    assert x.isfinite().all()
    assert not torch.equal(x, sample(denoiser, (4, 2), solver=solver, steps=4, cond=cond * 0))


def test_every_guidance_rule_takes_it():
    denoiser, x, t = score_flow(num_classes=3), points(3, 2), times(3)
    labels = torch.tensor([0, 1, 2])
    null = denoiser.null_condition(labels)
    assert torch.equal(null, torch.full((3,), 3))
    with_class, without = denoiser.score(x, t, labels), denoiser.score(x, t, null)
    torch.testing.assert_close(without, denoiser.score(x, t))
    guided = ClassifierFreeGuidance(denoiser, 3.0).score(x, t, labels)
    torch.testing.assert_close(guided, without + 3 * (with_class - without))
    away = NegativePrompt(denoiser, torch.tensor([1]), 2.0).score(x, t, labels)
    negative = denoiser.score(x, t, torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(away, negative + 2 * (with_class - negative))


def test_images_are_flattened_for_a_flow_of_vectors_and_come_back():
    denoiser, x, t = score_flow(shape=(16,)), points(3, 1, 4, 4), times(3)
    score = denoiser.score(x, t)
    assert score.shape == x.shape
    torch.testing.assert_close(score.flatten(1), denoiser.score(x.flatten(1), t))
    assert denoiser.from_noise(x, t).shape == x.shape


def test_direct_is_one_pass_and_one_step_of_denoising():
    denoiser = transformer_score_flow(num_classes=3)
    labels, seen = torch.tensor([0, 1]), []
    x = points(2, 1, 4, 4)
    ts = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    got = direct(denoiser, 5 * x, ts, cond=labels, callback=lambda *state: seen.append(state))
    xt = denoiser.from_noise(x, times(2, 0.0), labels)
    torch.testing.assert_close(got, xt + 0.1**2 * denoiser.score(xt, times(2, 0.0), labels))
    assert [(i, float(t)) for i, t, _ in seen] == [(2, 0.0)]
    assert sample(denoiser, (2, 1, 4, 4), solver=direct, cond=labels).shape == (2, 1, 4, 4)
    with pytest.raises(TypeError, match="direct needs a ScoreFlowNetwork, without guidance"):
        direct(ClassifierFreeGuidance(denoiser, 2.0), x, ts, cond=labels)


@pytest.mark.parametrize("path", [VP(), VE(0.05, 5.0), Linear()], ids=str)
def test_from_noise_draws_from_the_density(path):
    """The weighted mean of 1 under samples: importance weights against a known Gaussian."""
    denoiser = score_flow(path, data_std=0.7)
    z, t = points(20_000, 2), times(20_000)
    x = denoiser.from_noise(z, t)
    mean, std = x.mean(0), x.std(0)
    reference = torch.distributions.Normal(mean, 0.5 * std)
    ratio = (reference.log_prob(x).sum(1) - denoiser.log_prob(x, t).detach()).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=5 * ratio.std().item() / 20_000**0.5)


def test_likelihood_is_minus_log_prob_per_dimension():
    denoiser, x0, eps, t = score_flow(), points(4, 2), points(4, 2, seed=3), times(4)
    loss = flow_likelihood(denoiser, x0, t=t, eps=eps)
    xt = denoiser.path.sample(x0, t, eps)
    torch.testing.assert_close(loss, -denoiser.log_prob(xt, t).mean() / 2)
    generator = torch.Generator().manual_seed(0)
    drawn = LikelihoodAt(0.4)(denoiser, x0, generator=generator)
    eps = torch.empty_like(x0).normal_(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, flow_likelihood(denoiser, x0, t=t, eps=eps))
    assert flow_likelihood(denoiser, x0).isfinite()


def test_score_matching_is_the_squared_error_of_the_noise():
    denoiser, x0, eps, t = score_flow(), points(4, 2), points(4, 2, seed=3), times(4)
    loss = flow_score_matching(denoiser, x0, t=t, eps=eps)
    xt = denoiser.path.sample(x0, t, eps)
    torch.testing.assert_close(loss, (denoiser.noise(xt, t) - eps).square().mean())
    torch.testing.assert_close(loss, denoising_loss(denoiser, x0, t=t, eps=eps, weight=snr_weight))


@pytest.mark.parametrize("objective", [flow_likelihood, flow_score_matching])
def test_both_objectives_find_the_score_of_a_gaussian(objective):
    """Correlated Gaussian data: the exact noise prediction at all levels, to 2 % of its size."""
    path, mean = VE(0.2, 3.0), torch.tensor([0.5, -0.3])
    root = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
    torch.manual_seed(0)
    denoiser = ScoreFlowNetwork(NormalizingFlow(2, n_flows=0, cond_dim=16), path, data_std=0.9)

    def data(n, generator):
        return mean + torch.randn(n, 2, generator=generator) @ root.T

    trained = fit(denoiser, data, objective=objective, steps=400, batch_size=2048, lr=1e-2,
                  lr_schedule="cosine", ema=0.99, progress=False)  # fmt: skip
    exact = GaussianMixture(mean[None], (root @ root.T)[None], torch.ones(1), path)
    t = torch.linspace(0, 1, 200).repeat(20)
    x = exact.sample(4000, t, torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = trained.noise(x, t) - exact.noise(x, t)
    assert (error.norm() / exact.noise(x, t).norm()).item() < 0.02


def test_the_engine_trains_like_fit_and_samples_with_the_average():
    from lightning.pytorch import Trainer

    data = points(64, 1, 2, 2).float()
    make = lambda: score_flow(shape=(4,)).float()  # noqa: E731
    engine = FlowDiffusionEngine(make(), data, steps=5, batch_size=16, lr=1e-2)
    trainer = Trainer(max_steps=5, logger=False, enable_checkpointing=False, accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(engine)
    trained = fit(make(), data, objective=flow_likelihood, steps=5, batch_size=16, lr=1e-2,
                  progress=False)  # fmt: skip
    for ours, theirs in zip(engine.averaged.module.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(engine.sample(3, steps=4, seed=1), sample(trained, (3, 1, 2, 2), steps=4,
                                                                  seed=1))  # fmt: skip


def test_wrong_arguments_are_named():
    net = NetDenoiser(MLP(2), VP())
    for call in (lambda: flow_likelihood(net, points(3, 2)),
                 lambda: FlowDiffusionEngine(net, points(3, 2), steps=1)):  # fmt: skip
        with pytest.raises(TypeError, match="ScoreFlowNetwork"):
            call()
    with pytest.raises(TypeError, match="takes a Flow and a Path; got MLP and VP"):
        ScoreFlowNetwork(MLP(2), VP())
    with pytest.raises(ValueError, match="cond_dim above 0, to be told the noise level"):
        ScoreFlowNetwork(TransformerFlow(4, patch=2, dim=8), VP())
    with pytest.raises(ValueError, match="data_std must be above 0; got 0"):
        score_flow(data_std=0)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]; got 2"):
        LikelihoodAt(2)
    denoiser = score_flow(shape=(4,))
    with pytest.raises(ValueError, match=r"with \(4,\) numbers; got"):
        denoiser.score(points(3, 2), times(3))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        denoiser.log_prob(points(3, 4), times(3, 1.5))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = course_lib.flows.nothing
