"""Inpainting: what is known stays, noise levels, and distances from exact conditionals."""

from itertools import pairwise

import pytest
import torch

from course_lib import VP, DiscreteVP, GaussianMixture, Linear, NetDenoiser, linear_betas, nets
from course_lib.applications import (
    conditional,
    filtered,
    paste,
    renoise,
    repaint,
    repaint_schedule,
)
from course_lib.evaluation import wasserstein2
from course_lib.samplers import ancestral, uniform_grid

MASK = torch.tensor([1.0, 0.0])
KNOWN = torch.tensor([-0.5, 0.0]).double()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bimodal(path=None) -> GaussianMixture:
    """Where x_1 = -0.5, x_2 is near 1 with probability 0.38, otherwise near -1."""
    means = torch.tensor([[-0.6, 1.0], [-0.9, -1.0], [1.0, -1.0]]).double()
    covs = torch.tensor([[[0.15, 0.05], [0.05, 0.05]]]).double().expand(3, 2, 2)
    return GaussianMixture(means, covs, torch.tensor([0.25, 0.5, 0.25]).double(), path or VP())


def correlated(rho: float = 0.8) -> GaussianMixture:
    cov = torch.tensor([[1.0, rho], [rho, 1.0]]).double()
    return GaussianMixture(torch.zeros(1, 2).double(), cov[None], torch.ones(1).double(), VP())


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "heun", ancestral])
def test_the_known_part_is_kept_and_noised_to_the_level_after_the_step(solver):
    model, ts, seen = bimodal(), uniform_grid(VP(), 4), []
    x = paste(
        model, noise(4000), ts, known=KNOWN, mask=MASK, solver=solver, generator=seeded(1),
        callback=lambda i, s, x: seen.append((i, s, x[:, 0])),
    )  # fmt: skip
    assert (x[:, 0] == KNOWN[0]).all()
    assert [i for i, *_ in seen] == [0, 1, 2, 3]
    for (_, s, first), time in zip(seen, ts[1:], strict=True):
        alpha, sigma = VP().alpha(time), VP().sigma(time)
        assert s == time
        assert abs(first.mean() - alpha * KNOWN[0]) <= 4 * sigma / 4000**0.5
        assert abs(first.std(correction=0) - sigma) <= 4 * sigma / 8000**0.5


def test_fresh_noise_at_every_step():
    seen = []
    paste(
        bimodal(), noise(2000), uniform_grid(VP(), 5), known=KNOWN, mask=MASK, generator=seeded(1),
        callback=lambda i, s, x: seen.append(x[:, 0]),
    )  # fmt: skip
    pair = torch.corrcoef(torch.stack(seen[:2]))
    assert abs(pair[0, 1]) < 4 / 2000**0.5


def test_a_gaussian_by_its_closed_recursion():
    """Mean and variance of the unknown part, step by step, for a linear model."""
    model, ts, rho = correlated(), uniform_grid(VP(), 20), 0.8
    known = torch.tensor([1.5, 0.0]).double()
    x = paste(model, noise(20_000), ts, known=known, mask=MASK, generator=seeded(1))
    mean, cov = torch.zeros(2).double(), torch.eye(2).double()
    C = torch.tensor([[1.0, rho], [rho, 1.0]]).double()
    for t, s in pairwise(ts):
        (a, b), (sa, sb) = ([VP().alpha(u) for u in (t, s)], [VP().sigma(u) for u in (t, s)])
        added = sa**2 - (a / b) ** 2 * sb**2
        J = a * C @ torch.linalg.inv(a**2 * C + sa**2 * torch.eye(2))
        M = a / b * sb**2 / sa**2 * torch.eye(2) + b * added / sa**2 * J
        mean, cov = M @ mean, M @ cov @ M.T + added * sb**2 / sa**2 * torch.eye(2)
        mean[0], cov = b * known[0], torch.diag(torch.stack([sb**2, cov[1, 1]]))
    assert abs(x[:, 1].mean() - mean[1]) < 4 * (cov[1, 1] / 20_000) ** 0.5
    assert abs(x[:, 1].var() - cov[1, 1]) < 4 * cov[1, 1] * (2 / 20_000) ** 0.5
    assert abs(mean[1] - rho * 1.5) > 0.1  # and that is not the conditional mean


def test_resampling_comes_nearer_to_the_exact_conditional():
    model, goal = correlated(), conditional(correlated(), torch.tensor([1.5, 0]), MASK)
    exact = goal.sample(500, generator=seeded(9))
    known, ts, far = torch.tensor([1.5, 0.0]).double(), uniform_grid(VP(), 15), []
    for r in (1, 4, 16):
        x = repaint(model, noise(500), ts, known=known, mask=MASK, resamples=r, generator=seeded(1))
        far.append(wasserstein2(x[:, 1:], exact))
    assert far[0] > 1.5 * far[1] > 1.2 * 1.5 * far[2], far


def test_the_particle_filter_comes_to_the_exact_conditional_as_the_grid_grows():
    """Over several runs, since the guesses of one run share the path of the known part."""
    exact = conditional(bimodal(), KNOWN, MASK).sample(20_000, generator=seeded(7))
    wanted, lower = (exact > 0).double().mean(), exact[exact < 0]
    args, short = {"known": KNOWN, "mask": MASK}, []
    for steps in (30, 240):
        ts = uniform_grid(VP(), steps)
        runs = torch.stack(
            [
                filtered(bimodal(), noise(500, k), ts, generator=seeded(k + 50), **args)[:, 1]
                for k in range(12)
            ]
        )
        short.append(1 - float(runs[runs < 0].std() / lower.std()))
    assert 0 < short[1] < 0.5 * short[0] < 0.15, short
    upper = (runs > 0).double().mean(1)
    assert abs(upper.mean() - wanted) < 3 * upper.std() / 12**0.5
    pasted = paste(bimodal(), noise(4000), ts, generator=seeded(1), **args)
    assert abs((pasted[:, 1] > 0).double().mean() - wanted) > 0.1  # which pasting does not reach


def test_the_particle_filter_keeps_the_known_part_and_tells_each_step():
    seen, ts = [], uniform_grid(VP(), 5)
    x = filtered(
        bimodal(), noise(50), ts, known=KNOWN, mask=MASK, generator=seeded(1),
        callback=lambda i, s, x: seen.append((i, s, x[:, 0].unique())),
    )  # fmt: skip
    assert (x[:, 0] == KNOWN[0]).all()
    assert [(i, s) for i, s, _ in seen] == list(enumerate(ts[1:]))
    assert all(len(first) == 1 for *_, first in seen)  # one path, the same for all guesses
    with pytest.raises(ValueError, match="mask must be 0"):
        filtered(bimodal(), noise(4), ts, known=KNOWN, mask=torch.full((2,), 0.5))


def test_paste_is_repaint_without_resampling_and_a_full_mask_gives_the_image():
    model, ts = bimodal(), uniform_grid(VP(), 6)
    args = {"known": KNOWN, "mask": MASK}
    once = repaint(model, noise(5), ts, resamples=1, generator=seeded(2), **args)
    torch.testing.assert_close(paste(model, noise(5), ts, generator=seeded(2), **args), once)
    everything = paste(model, noise(5), ts, known=KNOWN, mask=torch.ones(1))
    torch.testing.assert_close(everything, KNOWN.expand(5, 2))
    nothing = paste(model, noise(5), ts, known=KNOWN, mask=torch.zeros(1), solver="ddim")
    from course_lib.samplers import ddim

    torch.testing.assert_close(nothing, ddim(model, noise(5), ts))


def test_images_and_a_path_of_discrete_steps():
    torch.manual_seed(0)
    path = DiscreteVP(linear_betas(100))
    net = NetDenoiser(nets.UNet(width=8, multipliers=(1,)), path).eval()
    known, mask = torch.rand(1, 1, 8, 8) * 2 - 1, torch.zeros(8, 8)
    mask[:4] = 1
    with torch.no_grad():
        x = repaint(
            net, torch.randn(2, 1, 8, 8), uniform_grid(path, 6), known=known, mask=mask,
            resamples=2, jump=2, generator=seeded(0),
        )  # fmt: skip
    torch.testing.assert_close(x[:, :, :4], known[:, :, :4].expand(2, 1, 4, 8))
    assert x[:, :, 4:].isfinite().all()


def test_schedules():
    assert repaint_schedule(3, 1) == [0, 1, 2, 3]
    assert repaint_schedule(3, 2) == [0, 1, 0, 1, 2, 1, 2, 3]
    assert repaint_schedule(5, 2, jump=2) == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5]
    for steps, r, jump in ((9, 3, 1), (10, 4, 3), (7, 10, 2)):
        order = repaint_schedule(steps, r, jump)
        moves = {b - a for a, b in pairwise(order)}
        assert moves == {1, -jump}
        assert (order[0], order[-1]) == (0, steps)
        starts = len(range(steps - 1, jump - 1, -jump))
        assert len(order) - 1 == steps + starts * (r - 1) * (jump + 1)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=str)
def test_renoise_has_the_marginals_and_the_correlation_of_the_path(path):
    n, s, t = 40_000, torch.tensor(0.3), torch.tensor(0.7)
    x0 = torch.full((n,), 0.8).double()
    eps = torch.randn(n, generator=seeded(0), dtype=torch.float64)
    xs = path.sample(x0, s.double().expand(n), eps)
    xt = renoise(path, xs, s, t, seeded(1))
    alpha, sigma, at_s = path.alpha(t), path.sigma(t), path.sigma(s)
    assert abs(xt.mean() - 0.8 * alpha) < 4 * sigma / n**0.5
    assert abs(xt.std() - sigma) < 4 * sigma / (2 * n) ** 0.5
    shared = alpha / path.alpha(s) * at_s / sigma  # the correlation of x_s and x_t given x_0
    assert abs(torch.corrcoef(torch.stack([xs, xt]))[0, 1] - shared) < 4 / n**0.5
    torch.testing.assert_close(renoise(path, xs, s, s), xs)


GOOD = {"known": KNOWN, "mask": MASK}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask": torch.tensor([1.0, 0.3])}, ValueError, "mask must be 0 .unknown. or 1 .*got 0.3"),
        ({"mask": torch.ones(3)}, ValueError, "mask must broadcast to .4, 2.; got .3,."),
        ({"mask": [1, 0]}, TypeError, "mask must be a tensor"),
        ({"known": torch.zeros(3)}, ValueError, "known must broadcast"),
        ({"known": [0.0, 0.0]}, TypeError, "known must be a tensor"),
        ({"known": torch.zeros(2, dtype=torch.int64)}, ValueError, "got torch.int64"),
        ({"known": torch.tensor([0.0, torch.nan])}, ValueError, "got NaN"),
        ({"solver": "dpm_solver_pp_2m"}, ValueError, "needs the steps before"),
        ({"solver": "magic"}, ValueError, "solver must be one of"),
        ({"resamples": 0}, ValueError, "at least 1; got 5, 0 and 1"),
        ({"jump": 5, "resamples": 2}, ValueError, "jump must be shorter than the 5 steps"),
    ],
)
def test_bad_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        repaint(bimodal(), noise(4), uniform_grid(VP(), 5), **{**GOOD, **change})


def test_images_out_of_range_and_bare_networks_are_refused():
    net = nets.UNet(width=8, multipliers=(1,))
    x, mask = torch.zeros(1, 1, 8, 8), torch.ones(8, 8)
    ts = uniform_grid(VP(), 3)
    with pytest.raises(ValueError, match=r"known must be images in \[-1, 1\]; got .* to 255"):
        paste(NetDenoiser(net, VP()), x, ts, known=torch.full((1, 1, 8, 8), 255.0), mask=mask)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser"):
        paste(net, x, ts, known=x, mask=mask)
    with pytest.raises(ValueError, match="ts must fall"):
        paste(NetDenoiser(net, VP()), x, ts.flip(0), known=x, mask=mask)
    with pytest.raises(ValueError, match="s must be at most t"):
        renoise(VP(), x, torch.tensor(0.5), torch.tensor(0.4))
    with pytest.raises(ValueError, match="alpha"):
        renoise(Linear(), x, torch.tensor(1.0), torch.tensor(1.0))
