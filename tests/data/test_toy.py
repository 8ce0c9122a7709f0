import math

import pytest
import torch

from course_lib import data

NAMES = list(data.TOYS)
EXACT = [name for name, toy in data.TOYS.items() if toy.log_prob]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_range(name):
    x = data.toy(name).sample(2000)
    assert x.shape == (2000, 2)
    assert x.dtype == torch.float32
    assert 1.5 < x.abs().max() < 7
    assert (x.mean(0).abs() < 0.25).all()  # centred; standard deviations are below 4
    assert data.toy(name).sample(0).shape == (0, 2)


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_generator(name):
    sample = data.toy(name).sample
    assert torch.equal(sample(50), sample(50, seed=0))
    assert torch.equal(sample(50, seed=3), sample(50, generator=seeded(3)))
    assert not torch.equal(sample(50, seed=3), sample(50, seed=4))
    generator = seeded(3)
    assert not torch.equal(sample(50, generator=generator), sample(50, generator=generator))


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    data.toy(name).sample(10)
    assert torch.equal(torch.get_rng_state(), before)


def grid(side):
    """Centres of side x side cells of [-8, 8]^2, and the area of a cell."""
    line = (torch.arange(side, dtype=torch.float64) + 0.5) * (16 / side) - 8
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1), (16 / side) ** 2


@pytest.mark.parametrize("name", EXACT)
def test_density_integrates_to_one(name):
    cells, area = grid(800)
    total = data.toy(name).log_prob(cells).exp().sum() * area
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_samples_follow_the_density(name):
    """Pearson's chi-squared over the cells of a 32 x 32 grid, within 5 standard deviations."""
    n, (cells, area) = 100_000, grid(800)
    mass = (
        (data.toy(name).log_prob(cells).exp() * area).unflatten(0, (32, 25)).unflatten(2, (32, 25))
    )
    expected = n * mass.sum(dim=(1, 3)).flatten()
    x = data.toy(name).sample(n, seed=1).double()
    cell = ((x + 8) / 0.5).floor().long()
    counts = torch.bincount(cell[:, 0] * 32 + cell[:, 1], minlength=1024).double()
    rare = expected < 10  # pooled into one cell
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    used = expected > 1
    assert counts[~used].sum() < 10
    chi2, freedom = ((counts - expected) ** 2 / expected)[used].sum().item(), int(used.sum()) - 1
    assert freedom > 20
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("name", "entropy"), [("eight_gaussians", 2.6147), ("checkerboard", math.log(32))]
)
def test_entropy(name, entropy):
    toy = data.toy(name)
    nll = -toy.log_prob(toy.sample(200_000).double()).mean()
    # -log p has standard deviation 1 for a Gaussian in the plane: error 0.0022, tolerance 4.5 of it
    assert nll.item() == pytest.approx(entropy, abs=0.01)


def test_eight_gaussians_against_torch_distributions():
    means, covs, weights = data.eight_gaussians_parameters(torch.float64)
    assert means.norm(dim=1).tolist() == pytest.approx([5] * 8)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, covs),
    )
    x = 3 * torch.randn(4, 25, 2, dtype=torch.float64, generator=seeded(0))
    got = data.eight_gaussians_log_prob(x)
    assert got.shape == (4, 25)
    torch.testing.assert_close(got, mixture.log_prob(x), rtol=1e-12, atol=1e-12)


def test_eight_gaussians_parameters_default_to_float32():
    assert {p.dtype for p in data.eight_gaussians_parameters()} == {torch.float32}


def test_pinwheel_swirl_keeps_areas():
    """The density at a swirled point is that of the Gaussians at the point before."""
    x = torch.tensor([[2.0, 0.0], [1.4, 0.2]], dtype=torch.float64)
    angle = x.norm(dim=1) / 2
    turned = torch.stack(
        [
            x[:, 0] * angle.cos() - x[:, 1] * angle.sin(),
            x[:, 0] * angle.sin() + x[:, 1] * angle.cos(),
        ],
        dim=1,
    )
    std = torch.tensor([0.6, 0.2], dtype=torch.float64)
    blade = torch.distributions.Normal(torch.tensor([2.0, 0.0], dtype=torch.float64), std)
    want = blade.log_prob(x).sum(1) - math.log(5)
    # the other four blades add less than 1e-6 here
    torch.testing.assert_close(data.pinwheel_log_prob(turned), want, atol=1e-6, rtol=0)


def test_checkerboard_has_all_its_points_on_it():
    x = data.checkerboard(200_000)
    assert (data.checkerboard_log_prob(x) == -math.log(32)).all()


def test_checkerboard_density_off_the_board():
    x = torch.tensor([[-3.0, -3.0], [-1.0, -3.0], [-5.0, -3.0], [3.0, 3.0], [1.0, 4.5]])
    on, off = -math.log(32), -math.inf
    assert data.checkerboard_log_prob(x).tolist() == pytest.approx([on, off, off, on, off])


def arc(centre, radius, start, stop):
    """1,000 points on an arc, (1000, 2)."""
    angle = torch.linspace(start, stop, 1000)
    return torch.tensor(centre) + radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def assert_follows(x, curve, parts):
    """Points are noise of deviation 0.1 off a curve, and fall on its parts evenly."""
    distance, nearest = torch.cdist(x, curve).min(dim=1)
    assert distance.square().mean().sqrt().item() == pytest.approx(0.1, abs=0.01)
    shares = torch.bincount(nearest * parts // len(curve), minlength=parts) / len(x)
    assert (
        shares - 1 / parts
    ).abs().max() < 0.03  # over 5 standard deviations, and the curves' ends


def test_two_moons_are_two_half_circles():
    moons = [arc([-1.0, -0.5], 2, 0, math.pi), arc([1.0, 0.5], 2, math.pi, 2 * math.pi)]
    assert_follows(data.two_moons(4000), torch.cat(moons), parts=8)


def test_s_curve_is_two_arcs():
    upper = arc([0.0, 1.5], 1.5, -0.5 * math.pi, -2 * math.pi)
    lower = arc([0.0, -1.5], 1.5, 0.5 * math.pi, -math.pi)
    assert_follows(data.s_curve(4000), torch.cat([upper, lower]), parts=8)


def test_spirals_are_two_arms_of_one_and_a_half_turns():
    radius = (torch.linspace(0, 1, 1000) * 16).sqrt()  # even steps in the square of the radius
    angle = radius * (3 * math.pi / 4)
    arm = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    assert angle.max() == pytest.approx(3 * math.pi)
    assert_follows(data.spirals(4000), torch.cat([arm, -arm]), parts=4)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name must be one of eight_gaussians, .*got 'moons'"):
        data.toy("moons")


def test_labels_of_eight_gaussians_are_those_of_the_nearest_mean():
    means, _, _ = data.eight_gaussians_parameters()
    toy = data.toy("eight_gaussians")
    assert toy.classes == 8
    assert torch.equal(toy.labels(means), torch.arange(8))
    x = toy.sample(4000)
    labels = toy.labels(x)
    assert labels.dtype == torch.int64
    assert (labels.bincount(minlength=8) > 400).all()
    # Neighbours are twelve standard deviations apart: within a class the variance is 0.1.
    assert (x - means[labels]).var().item() == pytest.approx(0.1, rel=0.1)
    angle = torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)
    assert torch.equal(labels, angle.round().long() % 8)


def test_other_shapes_have_no_classes():
    found = {name for name, toy in data.TOYS.items() if toy.classes or toy.labels}
    assert found == {"eight_gaussians"}
