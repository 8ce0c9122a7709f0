"""SDEdit, DDIM inversion and mixtures of noises against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from course_lib import VP, DiscreteVP, GaussianMixture, Linear, linear_betas, nets
from course_lib.applications import blend, invert, sdedit, slerp
from course_lib.samplers import ancestral, ddim, uniform_grid


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(path=None, m: float = 0.7, s0: float = 0.5) -> GaussianMixture:
    one = torch.ones(1).double()
    return GaussianMixture(m * one[None], s0**2 * one[:, None, None], one, path or VP())


def two(path=None) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.5]]).double()
    covs = torch.tensor([[0.2, 0.1], [0.1, 0.2]]).double().expand(2, 2, 2)
    labels = torch.tensor([0, 1])
    return GaussianMixture(means, covs, torch.tensor([0.4, 0.6]).double(), path or VP(), labels)


@pytest.mark.parametrize("t0", [0.2, 0.6])
def test_sdedit_of_a_gaussian_by_its_closed_form(t0):
    """Reverse SDE from x_t0 = alpha x_0 + sigma eps: a draw from q(x_0 | x_t0), averaged."""
    m, s0, start, n = 0.7, 0.5, 2.0, 5000
    x0 = torch.full((n, 1), start).double()
    x = sdedit(gaussian(), x0, t0, steps=200, solver=ancestral)
    alpha, sigma = (f(torch.tensor(t0)).item() for f in (VP().alpha, VP().sigma))
    gain = alpha * s0**2 / (alpha**2 * s0**2 + sigma**2)
    mean = m + gain * alpha * (start - m)
    std = (sigma**2 * gain**2 + s0**2 * (1 - gain * alpha)) ** 0.5
    assert abs(x.mean() - mean) < 0.03
    assert abs(x.std() - std) < 0.03


def test_sdedit_keeps_with_little_noise_and_forgets_with_much():
    x0, model = torch.full((500, 2), 1.0).double(), two()
    near, far = (sdedit(model, x0, t0, seed=1) for t0 in (0.02, 1.0))
    assert (near - x0).abs().max() < 0.5
    assert abs((far[:, 0] > 0).double().mean() - 0.4) < 4 * 0.5 / 500**0.5  # the prior's weights
    torch.testing.assert_close(near, sdedit(model, x0, 0.02, seed=1))
    other = sdedit(model, x0, 0.8, cond=torch.ones(500, dtype=torch.int64))
    assert (other[:, 0] < 0.6).double().mean() > 0.99


def test_sdedit_begins_on_the_steps_of_a_discrete_path():
    path = DiscreteVP(linear_betas(100))
    seen = []
    sdedit(
        two(path), normal(2, 2).clamp(-1, 1), 0.333, steps=3, solver="ancestral",
        callback=lambda i, s, x: seen.append(round(100 * s.item(), 4)),
    )  # fmt: skip
    assert seen[-1] == 0
    assert all(s == int(s) for s in seen)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=str)
def test_inversion_has_an_error_of_first_order(path):
    """There and back on N steps: halving the steps halves the error."""
    x0, errors = two(path).sample(64, generator=seeded(0)), []
    for steps in (40, 80, 160):
        ts = uniform_grid(path, steps, t_max=0.95)
        there = invert(two(path), x0, ts)
        errors.append((ddim(two(path), there, ts) - x0).square().mean().sqrt().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.7 < s < 1.4 for s in slopes), (errors, slopes)


def test_inversion_finds_the_noise_of_the_ode():
    """For Gaussian data the ODE keeps the number of deviations from the mean."""
    x0 = torch.tensor([[-0.1], [0.4], [1.5]]).double()
    ts = uniform_grid(VP(), 400)
    found, t = invert(gaussian(), x0, ts), ts[:1]
    spread = (VP().alpha(t) ** 2 * 0.25 + VP().sigma(t) ** 2).sqrt()
    expected = VP().alpha(t) * 0.7 + spread * (x0 - 0.7) / 0.5
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


def test_refinement_inverts_ddim_exactly():
    """The fixed point is the inverse of DDIM's own step, on a grid as coarse as ten steps."""
    model, ts = two(), uniform_grid(VP(), 10, t_max=0.7)
    x0 = model.sample(32, generator=seeded(0))
    off = [
        (ddim(model, invert(model, x0, ts, refine=k), ts) - x0).abs().max().item()
        for k in (0, 2, 60)
    ]
    assert off[0] > 0.05
    assert off[2] < 1e-7
    latent = normal(32, 2, seed=3)
    image = ddim(model, latent, ts)
    torch.testing.assert_close(invert(model, image, ts, refine=60), latent, atol=1e-6, rtol=0)


def test_inversion_takes_conditions_and_reports_its_states():
    model, ts, seen = two(), uniform_grid(VP(), 5), []
    x0, cond = normal(4, 2), torch.tensor([0, 0, 1, 1])
    x = invert(model, x0, ts, cond=cond, callback=lambda i, t, x: seen.append((i, t.item(), x)))
    assert [i for i, *_ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == ts.flip(0)[1:].tolist()
    assert seen[-1][2] is x
    assert not torch.allclose(x, invert(model, x0, ts))


def test_slerp_goes_along_the_circle_at_constant_speed():
    a = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).double()
    b = torch.tensor([[0.0, 3.0], [2.0, 0.0]]).double()
    u = torch.tensor([1 / 3, 0.5]).double()
    expected = torch.tensor(
        [[3 * math.cos(math.pi / 6), 3 * math.sin(math.pi / 6)], [2**0.5, 2**0.5]]
    ).double()
    torch.testing.assert_close(slerp(a, b, u), expected)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, 2 * a, 0.25), 1.25 * a)  # parallel: the straight line
    images = normal(2, 3, 8, 8)
    flat = slerp(images.flatten(1), images.flip(0).flatten(1), 0.3)
    torch.testing.assert_close(slerp(images, images.flip(0), 0.3).flatten(1), flat)


def test_blend_of_independent_noises_is_standard_normal():
    z = normal(3, 200_000, 1)
    mixed = blend(z, [0.5, 2.0, -1.0])
    assert abs(mixed.mean()) < 4 / 200_000**0.5
    assert abs(mixed.std() - 1) < 4 / 400_000**0.5
    torch.testing.assert_close(mixed, (0.5 * z[0] + 2 * z[1] - z[2]) / 5.25**0.5)
    torch.testing.assert_close(blend(z, torch.tensor([0, 7.0, 0])), z[1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sdedit(two(), normal(2, 2), 0.0), ValueError, r"t0 must lie in \(0, 1\]"),
        (lambda: sdedit(two(), normal(2, 2), 1.5), ValueError, r"t0 must lie in \(0, 1\]"),
        (
            lambda: sdedit(two(), torch.full((1, 1, 2, 2), 2.0), 0.5),
            ValueError,
            "x0 must be images",
        ),
        (lambda: sdedit(nets.MLP(2), normal(2, 2), 0.5), TypeError, "must be a Denoiser"),
        (
            lambda: invert(two(), normal(2, 2), uniform_grid(VP(), 3).flip(0)),
            ValueError,
            "ts must fall",
        ),
        (
            lambda: invert(two(), normal(2, 2), uniform_grid(VP(), 3), refine=-1),
            ValueError,
            "refine must be at least 0",
        ),
        (
            lambda: invert(two(), torch.full((1, 1, 2, 2), 2.0), uniform_grid(VP(), 3)),
            ValueError,
            "x0 must be images",
        ),
        (lambda: invert(nets.MLP(2), normal(2, 2), uniform_grid(VP(), 3)), TypeError, "Denoiser"),
        (lambda: slerp(normal(2, 3), normal(3, 3), 0.5), ValueError, "a and b must have one shape"),
        (
            lambda: slerp(normal(2, 3), normal(2, 3), torch.ones(3)),
            ValueError,
            "t must have shape",
        ),
        (lambda: blend(normal(2, 3), [1.0]), ValueError, "weights must be 2 numbers"),
        (lambda: blend(normal(2, 3), [0.0, 0.0]), ValueError, "not all 0"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
