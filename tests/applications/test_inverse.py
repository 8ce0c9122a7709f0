"""Linear operators, reconstruction guidance against closed forms, and exact posteriors."""

import math

import pytest
import torch

from course_lib import VE, VP, GaussianMixture, Linear, NetDenoiser, nets
from course_lib.applications import (
    ReconstructionGuidance,
    blur,
    conditional,
    downsample,
    mask_operator,
    matrix_operator,
    posterior,
    transpose,
)
from course_lib.applications.inverse import conjugate_gradients
from course_lib.samplers import ddim, uniform_grid

FACES = ("noise", "data", "v", "velocity", "score")
PATHS = (VP(), Linear(), VE(0.02, 20.0))
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]).double()
Y = torch.tensor([0.8, -0.3]).double()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(path, cov) -> GaussianMixture:
    mean = torch.tensor([[0.4, -1.0, 0.2]]).double()
    return GaussianMixture(mean, cov[None], torch.ones(1).double(), path)


def mixture(path=None, seed: int = 0) -> GaussianMixture:
    root = normal(3, 3, 3, seed=seed)
    covs = root @ root.mT + 0.2 * torch.eye(3).double()
    return GaussianMixture(
        normal(3, 3, seed=seed + 1), covs, torch.tensor([0.2, 0.5, 0.3]).double(), path or VP()
    )


OPERATORS = {
    "mask": (mask_operator(torch.tensor([[0.0, 1.0] * 4] * 8)), (2, 1, 8, 8)),
    "downsample": (downsample(4), (2, 3, 8, 8)),
    "blur": (blur(0.9), (2, 3, 9, 8)),
    "matrix": (matrix_operator(MATRIX), (4, 3)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_transpose_is_the_adjoint(name):
    operator, shape = OPERATORS[name]
    x = normal(*shape)
    ax = operator(x)
    y = torch.randn(ax.shape, generator=seeded(1), dtype=torch.float64)
    back = transpose(operator, y, shape)
    assert back.shape == shape
    torch.testing.assert_close((ax * y).sum(), (x * back).sum())


def test_operators_are_what_they_say():
    x = normal(2, 1, 4, 6)
    half = torch.zeros(4, 6)
    half[:2] = 1
    torch.testing.assert_close(mask_operator(half)(x), x[:, :, :2].flatten(1))
    blocks = x.reshape(2, 1, 2, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(downsample(2)(x), blocks)
    torch.testing.assert_close(matrix_operator(MATRIX)(normal(5, 3)), normal(5, 3) @ MATRIX.T)


def test_blur_of_a_point_is_the_normal_density_and_keeps_a_constant():
    x = torch.zeros(1, 2, 21, 21).double()
    x[..., 10, 10] = 1
    out = blur(1.5)(x)[0, 1]
    r = torch.arange(21) - 10.0
    bell = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * 1.5**2)).double()
    bell[(r.abs() > 5)[:, None] | (r.abs() > 5)] = 0  # it ends at three deviations
    torch.testing.assert_close(out, bell / bell.sum(), atol=1e-7, rtol=0)
    torch.testing.assert_close(blur(2.0)(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 9, 9))


def test_conjugate_gradients_solve_each_sample_by_itself():
    root = normal(3, 5, 5)
    matrix, b = root @ root.mT + 0.1 * torch.eye(5).double(), normal(3, 5, seed=1)
    b[2] = 0
    v = conjugate_gradients(lambda p: torch.einsum("bij,bj->bi", matrix, p), b, tol=1e-12)
    torch.testing.assert_close(v, torch.linalg.solve(matrix, b), atol=1e-8, rtol=1e-8)
    assert not conjugate_gradients(lambda p: -p, b).any()  # no curvature: stands still


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", ["isotropic", "tweedie"])
def test_guidance_is_exact_for_gaussian_data_in_every_face(path, kind):
    """Isotropic covariance for PiGDM, any covariance for the Tweedie covariance."""
    s0 = 0.7
    cov = torch.eye(3).double() * s0**2
    if kind == "tweedie":
        cov = normal(3, 3) @ normal(3, 3).T + 0.1 * torch.eye(3).double()
    prior = gaussian(path, cov)
    exact = posterior(prior, MATRIX, Y, 0.3)
    guided = ReconstructionGuidance(
        prior, matrix_operator(MATRIX), Y[None], 0.3, covariance=kind, data_std=s0
    )
    x, t = normal(6, 3, seed=2), torch.linspace(0.02, 0.98, 6).double()
    for face in FACES:
        expected = getattr(exact, face)(x, t)
        torch.testing.assert_close(getattr(guided, face)(x, t), expected, atol=1e-8, rtol=1e-8)
        assert (getattr(prior, face)(x, t) - expected).abs().max() > 0.1


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_guidance_at_the_ends_of_time(path):
    """At t = 1, also where alpha = 0 (to the distance of the limit), and at t = 0."""
    prior = gaussian(path, torch.eye(3).double())
    exact = posterior(prior, MATRIX, Y, 0.3)
    guided = ReconstructionGuidance(prior, matrix_operator(MATRIX), Y[None], 0.3)
    x = normal(4, 3)
    for time, face in ((0.0, "data"), (1.0, "data"), (1.0, "velocity"), (1.0, "noise")):
        t = torch.full((4,), time).double()
        expected, got = (getattr(model, face)(x, t) for model in (exact, guided))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_point_covariance_is_the_gradient_of_the_squared_distance():
    prior, t = mixture(), torch.tensor([0.3, 0.6]).double()
    guided = ReconstructionGuidance(
        prior, matrix_operator(MATRIX), Y[None], 0.5, lambda t: 2 * t, covariance="point"
    )
    x = normal(2, 3).requires_grad_()
    distance = (Y - prior.data(x, t) @ MATRIX.T).square().sum()
    gradient = torch.autograd.grad(-distance / (2 * 0.5**2), x)[0]
    expected = prior.score(x, t) + 2 * t[:, None] * gradient
    torch.testing.assert_close(guided.score(x, t), expected)


def test_guidance_is_differentiable_and_takes_conditions():
    """The gradient of a face, which the density of a flow needs, against differences."""
    weights, classes = torch.ones(2).double(), torch.tensor([0, 1])
    prior = GaussianMixture(
        normal(2, 3), torch.eye(3).double().expand(2, 3, 3), weights, VP(), classes
    )
    guided = ReconstructionGuidance(prior, matrix_operator(MATRIX), Y[None], 0.4)
    x, t, cond = normal(2, 3), torch.full((2,), 0.4).double(), torch.tensor([0, 1])
    assert torch.autograd.gradcheck(lambda x: guided.data(x, t, cond), x.requires_grad_())
    only = GaussianMixture(prior.means[1:], torch.eye(3).double()[None], weights[1:], VP())
    alone = ReconstructionGuidance(only, matrix_operator(MATRIX), Y[None], 0.4)
    torch.testing.assert_close(guided.data(x, t, cond)[1], alone.data(x[1:], t[1:])[0])
    assert guided.null_condition(cond).tolist() == [2, 2]
    with torch.no_grad():
        assert not guided.data(x, t, cond).requires_grad


def test_samples_of_a_network_agree_with_the_measurement():
    """On images, with any network, noise 0 leaves the measurement as it is."""
    torch.manual_seed(0)
    net = NetDenoiser(nets.UNet(width=8, multipliers=(1,)), VP(), "v").eval()
    A, image = downsample(4), 0.5 * torch.ones(1, 1, 8, 8)
    guided = ReconstructionGuidance(net, A, A(image), 0.0)
    noise, ts = torch.randn(2, 1, 8, 8, generator=seeded(0)), uniform_grid(VP(), 10)
    with torch.no_grad():
        x, free = (ddim(model, noise, ts) for model in (guided, net))
    assert (A(x) - A(image)).abs().max() < 0.02 < (A(free) - A(image)).abs().max()


def test_posterior_is_bayes_rule():
    """log p(x | y) - log p(x) - log p(y | x) is one constant."""
    prior, x = mixture(), normal(50, 3, seed=4)
    post = posterior(prior, MATRIX, Y, 0.3)
    likelihood = -(Y - x @ MATRIX.T).square().sum(1) / (2 * 0.3**2)
    constant = post.log_prob(x) - prior.log_prob(x) - likelihood
    torch.testing.assert_close(constant, constant[:1].expand(50))


def test_conditional_is_a_slice_of_the_density():
    prior, mask = mixture(), torch.tensor([1, 0, 0])
    known = torch.tensor([0.7, math.nan, math.nan]).double()
    given = conditional(prior, known, mask)
    free = normal(40, 2, seed=5)
    points = torch.cat([torch.full((40, 1), 0.7).double(), free], 1)
    constant = given.log_prob(free) - prior.log_prob(points)
    torch.testing.assert_close(constant, constant[:1].expand(40))


def test_components_that_cannot_be_are_left_out():
    means = torch.tensor([[0.0, 0.0], [500.0, 0.0]]).double()
    covs = torch.eye(2).double().expand(2, 2, 2)
    far = GaussianMixture(means, covs, torch.ones(2).double(), VP())
    given = conditional(far, torch.zeros(2).double(), torch.tensor([1, 0]))
    assert given.means.shape == (1, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mask_operator(torch.tensor([0.5])), "mask must be 0 .unknown. or 1"),
        (lambda: mask_operator(torch.ones(3))(torch.ones(1, 1, 2, 2)), "mask must broadcast"),
        (lambda: downsample(0), "factor must be at least 1"),
        (lambda: downsample(3)(torch.ones(1, 1, 8, 8)), "multiples of 3"),
        (lambda: blur(0), "std must be above 0"),
        (lambda: blur(3)(torch.ones(1, 1, 8, 8)), "sides above 9"),
        (lambda: matrix_operator(torch.ones(3)), "matrix must have shape"),
        (lambda: posterior(mixture(), MATRIX[:, :2], Y, 0.1), "matrix must have shape"),
        (lambda: posterior(mixture(), MATRIX, Y, 0.0), "noise_std must be above 0"),
        (lambda: conditional(mixture(), Y, torch.ones(3)), "known must have shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"operator": 3}, TypeError, "operator must be a function"),
        ({"covariance": "full"}, ValueError, "covariance must be one of"),
        ({"noise_std": -1.0}, ValueError, "noise_std must be at least 0"),
        ({"noise_std": 0.0, "covariance": "point"}, ValueError, "above, for 'point'"),
        ({"data_std": 0.0}, ValueError, "data_std above 0"),
        ({"denoiser": nets.MLP(2)}, TypeError, "denoiser must be a Denoiser"),
    ],
)
def test_guidance_refuses(options, error, words):
    given = {"denoiser": mixture(), "operator": matrix_operator(MATRIX), "y": Y[None]}
    with pytest.raises(error, match=words):
        ReconstructionGuidance(**{**given, "noise_std": 0.3, **options})


def test_guidance_refuses_a_measurement_of_another_shape_and_inference_mode():
    guided = ReconstructionGuidance(mixture(), matrix_operator(MATRIX), Y[None, :1], 0.3)
    x, t = normal(2, 3), torch.full((2,), 0.5).double()
    with pytest.raises(ValueError, match="y must have the shape of A x"):
        guided.data(x, t)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        guided.data(x, t)
