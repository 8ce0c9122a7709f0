"""Couplings against brute force, against their two limits, and inside the loss."""

from functools import partial
from itertools import permutations

import pytest
import torch
from torch import nn

from course_lib import ConditionDropout, Linear, NetDenoiser, denoising_loss
from course_lib.training import fit
from course_lib.transport import (
    MinibatchOT,
    SinkhornCoupling,
    chain,
    fixed_pairs,
    independent,
    optimal_permutation,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cost_of(x0, eps):
    return (x0 - eps).square().flatten(1).sum(1).mean().item()


def rows(x):
    return sorted(x.flatten(1).tolist())


def test_independent_changes_nothing():
    x0, eps, cond = normal(4, 2), normal(4, 2, seed=1), torch.arange(4)
    assert all(a is b for a, b in zip(independent(x0, eps, cond), (x0, eps, cond), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_minibatch_ot_is_the_best_of_all_permutations(seed):
    x0, eps = normal(5, 1, 2, 2, seed=seed), normal(5, 1, 2, 2, seed=seed + 100)
    best = min(cost_of(x0, eps[list(order)]) for order in permutations(range(5)))
    moved, matched, _ = MinibatchOT()(x0, eps, None)
    assert cost_of(moved, matched) == pytest.approx(best, rel=1e-12)
    assert best < cost_of(x0, eps)


@pytest.mark.parametrize("within", [False, True])
def test_minibatch_ot_permutes_the_noise_and_leaves_data_and_labels(within):
    x0, eps, labels = normal(64, 3), normal(64, 3, seed=1), torch.arange(64) % 5
    moved, matched, cond = MinibatchOT(within)(x0, eps, labels)
    assert moved is x0
    assert cond is labels
    assert rows(matched) == rows(eps)
    assert cost_of(x0, matched) < cost_of(x0, eps)


def test_within_labels_each_class_keeps_its_noise():
    x0, eps, labels = normal(60, 2), normal(60, 2, seed=1), torch.arange(60) % 4
    _, matched, _ = MinibatchOT(within_labels=True)(x0 + 5 * labels[:, None], eps, labels)
    for label in range(4):
        own = labels == label
        assert rows(matched[own]) == rows(eps[own])
        _, alone, _ = MinibatchOT()(x0[own], eps[own], None)
        torch.testing.assert_close(matched[own], alone)
    # Without it, data that lies by label takes its noise by label.
    _, mixed, _ = MinibatchOT()(x0 + 5 * labels[:, None], eps, labels)
    assert mixed[labels == 3].mean() > mixed[labels == 0].mean() + 1


def test_small_epsilon_is_the_permutation_and_large_is_independence(generator):
    x0, eps = normal(12, 2), normal(12, 2, seed=1)
    sharp = SinkhornCoupling(0.001)(x0, eps, None, generator=generator)[1]
    assert torch.equal(sharp, MinibatchOT()(x0, eps, None)[1])
    # The loose plan is a b^T: which noise comes does not depend on the data.
    draws = [SinkhornCoupling(1e6)(x0, eps, None, generator=generator)[1] for _ in range(600)]
    index = torch.cdist(torch.stack(draws), eps).argmin(-1)  # (600, 12)
    share = nn.functional.one_hot(index, 12).double().mean(0)
    assert (share - 1 / 12).abs().max() < 4.5 * (1 / 12 * 11 / 12 / 600) ** 0.5


def test_sinkhorn_coupling_draws_each_noise_once_on_average(generator):
    x0, eps = normal(10, 2) * 2, normal(10, 2, seed=1)
    rule = SinkhornCoupling(0.1)
    drawn = torch.cat([rule(x0, eps, None, generator=generator)[1] for _ in range(800)])
    share = torch.cdist(drawn, eps).argmin(-1).bincount(minlength=10) / len(drawn)
    # A draw is independent of the others; its variance is at most that of one Bernoulli variable.
    assert (share - 0.1).abs().max() < 4.5 * (0.1 * 0.9 / len(drawn)) ** 0.5
    assert cost_of(x0.repeat(800, 1), drawn) < 0.7 * cost_of(x0.repeat(800, 1), eps.repeat(800, 1))


def test_epsilon_is_relative_to_the_mean_cost():
    x0, eps = normal(20, 2), normal(20, 2, seed=1)
    mean = torch.cdist(x0, eps).square().mean().item()

    def drawn(rule, scale):
        generator = torch.Generator().manual_seed(3)
        return rule(scale * x0, scale * eps, None, generator=generator)[1] / scale

    torch.testing.assert_close(drawn(SinkhornCoupling(0.2), 1), drawn(SinkhornCoupling(0.2), 100))
    by_hand = SinkhornCoupling(0.2 * mean, relative=False)
    torch.testing.assert_close(drawn(SinkhornCoupling(0.2), 1), drawn(by_hand, 1))
    assert not torch.equal(drawn(by_hand, 1), drawn(by_hand, 100))


class Watched(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        self.seen = x.detach(), t, cond
        return x + self.bias

    def null_condition(self, cond):
        return torch.full_like(cond, 9)


def watched():
    return NetDenoiser(Watched(), Linear(), "velocity")


def test_the_loss_is_that_of_the_coupled_pairs(generator):
    denoiser = watched()
    denoiser.predict = denoiser.net.forward  # without the scaling of its input
    x0, eps, t = normal(32, 2), normal(32, 2, seed=1), torch.full((32,), 0.3).double()
    loss = denoising_loss(denoiser, x0, t=t, eps=eps, coupling=MinibatchOT())
    matched = eps[optimal_permutation(torch.cdist(x0, eps).square())]
    xt = 0.7 * x0 + 0.3 * matched
    torch.testing.assert_close(denoiser.net.seen[0], xt)
    torch.testing.assert_close(loss, ((xt - (matched - x0)) ** 2).mean())


def test_the_generator_of_the_loss_decides_the_draws_of_the_coupling():
    denoiser, x0, eps = watched(), normal(32, 2), normal(32, 2, seed=1)
    state = torch.get_rng_state()

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        t = torch.full((32,), 0.5).double()
        coupling = SinkhornCoupling(1.0)
        return denoising_loss(
            denoiser, x0, t=t, eps=eps, coupling=coupling, generator=generator
        ).item()

    assert loss(0) == loss(0) != loss(1)
    assert torch.equal(state, torch.get_rng_state())


def test_fixed_pairs_bring_their_own_noise():
    denoiser, x0, eps = watched(), normal(16, 2), normal(16, 2, seed=1)
    t, labels = torch.full((16,), 0.25).double(), torch.arange(16)
    denoiser.predict = denoiser.net.forward
    for cond in (labels, None, (labels, labels)):
        denoising_loss(denoiser, x0, (eps, cond), t=t, coupling=fixed_pairs)
        seen, _, seen_cond = denoiser.net.seen
        torch.testing.assert_close(seen, 0.75 * x0 + 0.25 * eps)
        assert seen_cond is cond


def test_chain_matches_noise_that_comes_with_the_data():
    x0, eps = normal(16, 2), 3 * normal(16, 2, seed=1)
    unused = normal(16, 2, seed=2)
    _, got, cond = chain(fixed_pairs, MinibatchOT())(x0, unused, (eps, None))
    assert cond is None
    assert torch.equal(got, MinibatchOT()(x0, eps, None)[1])
    assert chain()(x0, eps, "anything") == (x0, eps, "anything")


@pytest.mark.parametrize("cond", [None, "labels"])
def test_fit_takes_pairs_and_couplings(cond, tmp_path):
    """By the same call again a run is found finished; another coupling is another run."""
    x0, eps = normal(40, 2), normal(40, 2, seed=1)
    data = (x0, (eps, torch.arange(40) % 3 if cond else None))
    options = {"steps": 3, "batch_size": 8, "progress": False, "checkpoint": tmp_path}

    def run(rule):
        objective = partial(denoising_loss, coupling=rule)
        return fit(watched(), data, objective=objective, **options).losses

    assert torch.equal(run(chain(fixed_pairs, MinibatchOT())),
                       run(chain(fixed_pairs, MinibatchOT())))  # fmt: skip
    with pytest.raises(ValueError, match="within_labels=True"):
        run(chain(fixed_pairs, MinibatchOT(within_labels=True)))


def test_hidden_labels_are_a_label_of_their_own(generator):
    """With ConditionDropout a rule sees the labels that are left."""
    seen = []

    def rule(x0, eps, cond, *, generator=None):
        seen.append(cond)
        return MinibatchOT(within_labels=True)(x0, eps, cond, generator=generator)

    objective = ConditionDropout(0.5, partial(denoising_loss, coupling=rule))
    objective(watched(), normal(40, 2), torch.arange(40) % 3, generator=generator)
    assert set(seen[0].tolist()) == {0, 1, 2, 9}


def test_wrong_arguments_are_named():
    x0, eps = normal(4, 2), normal(4, 2, seed=1)
    for rule in (MinibatchOT(), SinkhornCoupling(0.1)):
        with pytest.raises(ValueError, match=r"one shape \(B, \.\.\.\); got \(4, 2\) and \(3, 2\)"):
            rule(x0, eps[:3], None)
        with pytest.raises(ValueError, match="x0 must be finite"):
            rule(x0 / 0, eps, None)
    for cond in (None, torch.zeros(4), torch.zeros(3, dtype=torch.int64), (torch.arange(4),)):
        with pytest.raises(ValueError, match=r"within_labels needs cond of labels \(4,\) int64"):
            MinibatchOT(within_labels=True)(x0, eps, cond)
    for epsilon in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epsilon must be above 0; got"):
            SinkhornCoupling(epsilon)
    for cond in (None, x0, (x0,), (None, x0)):
        with pytest.raises(ValueError, match=r"fixed_pairs needs data \(x0, \(eps, cond\)\)"):
            fixed_pairs(x0, eps, cond)
    with pytest.raises(ValueError, match=r"the shape of x0, \(4, 2\); got \(3, 2\)"):
        fixed_pairs(x0, eps, (eps[:3], None))
