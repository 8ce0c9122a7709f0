"""Score distillation against closed forms on Gaussians, and exact mixtures."""

import math

import pytest
import torch
from torch import nn

from course_lib import VE, VP, GaussianMixture, Linear, NetDenoiser, denoising_loss
from course_lib.applications.sds import (
    ParticleDenoiser,
    annealed_times,
    data_weight,
    noise_weight,
    sds,
    vsd,
)

PATHS = [VP(), Linear(), VE(0.02, 10.0)]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
M, S = torch.tensor([0.7, -0.4]).double(), 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(path, m=M, s=S):
    eye = torch.eye(len(m), dtype=torch.float64)
    return GaussianMixture(m[None], s**2 * eye[None], torch.ones(1).double(), path)


def levels(path, t, s=S):
    """alpha, sigma and the variance of x_t, as columns."""
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    return alpha, sigma, alpha**2 * s**2 + sigma**2


@each_path
def test_the_surrogate_has_the_gradient_of_the_formula(path):
    p, x, eps, t = gaussian(path), normal(6, 2), normal(6, 2, seed=1), torch.linspace(0.1, 0.9, 6)
    t, x = t.double(), x.requires_grad_()
    alpha, sigma, var = levels(path, t)
    xt = alpha * x + sigma * eps
    expected = sigma**2 * (sigma * (xt - alpha * M) / var - eps)
    found = sds(p, x, t, eps)
    assert torch.allclose(found.gradient, expected)
    assert not found.gradient.requires_grad
    (gradient,) = torch.autograd.grad(found.loss, x)
    assert torch.allclose(gradient, expected / 6)


def test_the_gradient_reaches_what_the_image_was_made_of_and_not_the_network():
    net = nn.Linear(2, 2).double()
    model = NetDenoiser(lambda_net(net), Linear(), "velocity")
    theta = normal(3).requires_grad_()
    x = torch.stack([theta[:2] * theta[2], theta[1:]])
    t, eps = torch.tensor([0.3, 0.6]).double(), normal(2, 2, seed=1)
    found = sds(model, x, t, eps)
    found.loss.backward()
    assert all(w.grad is None for w in net.parameters())
    jacobian = torch.autograd.functional.jacobian(
        lambda theta: torch.stack([theta[:2] * theta[2], theta[1:]]), theta
    )
    assert torch.allclose(theta.grad, torch.einsum("bd,bdp->p", found.gradient, jacobian) / 2)


def lambda_net(linear):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x, t, cond=None):
            return self.linear(x)

    return Net()


@each_path
def test_data_weight_pulls_to_the_denoised_sample(path):
    p, x, eps = gaussian(path), normal(5, 2), normal(5, 2, seed=1)
    t = torch.full((5,), 0.4).double()
    xt = path.sample(x, t, eps)
    found = sds(p, x, t, eps, weight=data_weight)
    assert torch.allclose(found.gradient, x - p.data(xt, t))


@each_path
def test_its_mean_on_a_gaussian_and_its_fixed_point(path):
    """The mean over eps is w alpha sigma (x - m) / var; antithetic noise makes it exact."""
    p, x, t = gaussian(path), normal(4, 2), torch.tensor([0.1, 0.3, 0.6, 0.9]).double()
    eps = normal(4, 2, seed=1)
    mean = (sds(p, x, t, eps).gradient + sds(p, x, t, -eps).gradient) / 2
    alpha, sigma, var = levels(path, t)
    assert torch.allclose(mean, sigma**3 * alpha * (x - M) / var)
    at_mode = M.expand(4, 2)
    rest = sds(p, at_mode, t, eps).gradient + sds(p, at_mode, t, -eps).gradient
    assert rest.abs().max() < 1e-12


def test_its_mean_is_the_gradient_of_a_divergence():
    """(sigma / alpha) w grad KL(N(alpha x, sigma^2 I) || p_t), with the KL in closed form."""
    path, x = VP(), normal(3, 2).requires_grad_()
    t, eps = torch.tensor([0.2, 0.5, 0.8]).double(), normal(3, 2, seed=1)
    alpha, sigma, var = levels(path, t)
    kl = ((sigma**2 + alpha**2 * (x - M) ** 2) / var - 1 - (sigma**2 / var).log()).sum() / 2
    (slope,) = torch.autograd.grad(kl, x)
    p = gaussian(path)
    mean = (sds(p, x, t, eps).gradient + sds(p, x, t, -eps).gradient) / 2
    assert torch.allclose(mean, sigma**3 / alpha * slope)


@each_path
def test_the_best_control_variate_of_a_gaussian_leaves_no_variance(path):
    p, n, t = gaussian(path), 2000, 0.5
    times, x, eps = torch.full((n,), t).double(), M.expand(n, 2) + 1, normal(n, 2)
    alpha, sigma, var = (v[0].item() for v in levels(path, times))
    best = sigma**2 / var
    found = {
        c: sds(p, x, times, eps, weight=lambda path, t: torch.ones_like(t), control=c).gradient
        for c in (0.0, 1.0, best)
    }
    for c, g in found.items():  # variance (sigma^2 / var - c)^2, the mean always the same
        assert g.var(0).mean().item() == pytest.approx((best - c) ** 2, rel=0.1, abs=1e-15)
        error = (g.mean(0) - alpha * sigma / var).abs().max().item()
        assert error < 4 * abs(best - c) / math.sqrt(n) + 1e-12
    each = sds(p, x, times, eps, weight=lambda path, t: torch.ones_like(t), control=times * best)
    assert not torch.allclose(each.gradient, found[best])


def descend(step, x, steps=200, lr=1.0, seed=0, t_range=(0.02, 0.5)):
    """Plain descent of particles; ``step(x, t, eps)`` gives a Distillation."""
    generator = seeded(seed)
    for k in range(steps):
        t = torch.rand(len(x), generator=generator, dtype=torch.float64)
        t = t_range[0] + (t_range[1] - t_range[0]) * t
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x - lr * (1 - k / steps) * step(x, t, eps).gradient
    return x


def two_clusters(path, s=0.3):
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double()
    covs = s**2 * torch.eye(2).double().expand(2, 2, 2)
    return GaussianMixture(means, covs, torch.tensor([0.5, 0.5]).double(), path)


def test_sds_seeks_modes():
    """Every particle ends in a mode, and the spread of a cluster is lost."""
    p = two_clusters(Linear())
    x = descend(lambda x, t, eps: sds(p, x, t, eps, weight=data_weight), 2 * normal(300, 2), lr=0.2)
    mode = torch.where(x[:, :1] > 0, p.means[1], p.means[0])
    assert (x - mode).norm(dim=1).median() < 0.1  # a draw of p is .35 from its mean on average
    assert (x - mode).std() < 0.1


def test_vsd_keeps_the_variance():
    """A Gaussian q fitted to the particles: they end with the standard deviation of p, not 0."""
    path = Linear()
    p = gaussian(path)
    ends = {}
    for name in ("sds", "vsd"):

        def step(x, t, eps, name=name):
            if name == "sds":
                return sds(p, x, t, eps, weight=data_weight)
            q = gaussian_fit(x, path)
            return vsd(p, q, x, t, eps, weight=data_weight)

        ends[name] = descend(step, 2 * normal(200, 2), lr=0.4, steps=100, t_range=(0.1, 0.9))
    assert ends["sds"].std(0).max() < 0.12 * S + 0.05
    assert ends["vsd"].std(0).mean().item() == pytest.approx(S, rel=0.1)
    for x in ends.values():
        assert (x.mean(0) - M).abs().max() < 0.1


def gaussian_fit(x, path):
    return GaussianMixture(x.mean(0)[None], torch.cov(x.T)[None], torch.ones(1).double(), path)


@each_path
def test_vsd_rests_where_q_is_p(path):
    p, x, eps = gaussian(path), normal(5, 2), normal(5, 2, seed=1)
    t = torch.linspace(0.1, 0.9, 5).double()
    assert vsd(p, gaussian(path), x, t, eps).gradient.abs().max() < 1e-12


@each_path
def test_sds_is_vsd_of_one_particle(path):
    p, x, eps = gaussian(path), normal(1, 2), normal(1, 2, seed=1)
    t = torch.tensor([0.4]).double()
    alone = vsd(p, ParticleDenoiser(x, path), x, t, eps)
    assert torch.allclose(alone.gradient, sds(p, x, t, eps).gradient)


@each_path
def test_particles_are_a_mixture_of_narrow_gaussians(path):
    x = normal(7, 2)
    eye = 1e-12 * torch.eye(2).double().expand(7, 2, 2)
    mixture = GaussianMixture(x, eye, torch.ones(7).double(), path)
    xt, t = normal(9, 2, seed=1), torch.linspace(0.1, 0.9, 9).double()
    ours = ParticleDenoiser(x, path)
    assert torch.allclose(ours.data(xt, t), mixture.data(xt, t), atol=1e-6)
    assert torch.allclose(ours.score(xt, t), mixture.score(xt, t), rtol=1e-5)
    images = ParticleDenoiser(x.reshape(7, 1, 1, 2), path).data(xt.reshape(9, 1, 1, 2), t)
    assert torch.equal(images.reshape(9, 2), ours.data(xt, t))


def test_vsd_spreads_particles_over_the_modes():
    """With the exact score of the particles each cluster keeps particles and a spread."""
    path = Linear()
    p = two_clusters(path)

    def step(x, t, eps):
        return vsd(p, ParticleDenoiser(x, path), x, t, eps, weight=data_weight)

    x = descend(step, 2 * normal(100, 2), lr=0.4, steps=100)
    right = x[x[:, 0] > 0]
    assert 0.3 < len(right) / len(x) < 0.7
    assert right.std(0).mean().item() == pytest.approx(0.3, rel=0.3)


def test_the_loss_with_the_jacobian_is_another_gradient():
    """On a Gaussian it is alpha sigma / var times the right one: less, and for networks noisier."""
    path, t = Linear(), torch.tensor([0.2, 0.5]).double()
    p, x, eps = gaussian(path), normal(2, 2).requires_grad_(), normal(2, 2, seed=1)
    xt = path.sample(x, t, eps)
    half = (p.noise(xt, t) - eps).square().sum() / 2
    (wrong,) = torch.autograd.grad(half, x)
    right = sds(p, x, t, eps, weight=lambda path, t: torch.ones_like(t)).gradient
    alpha, sigma, var = levels(path, t)
    assert torch.allclose(wrong, alpha * sigma / var * right)
    denoising_loss(p, x, t=t, eps=eps).backward()  # the course's loss has that Jacobian too
    assert x.grad.abs().max() > 0


def test_times_fall():
    start, middle, end = (annealed_times(1000, d, generator=seeded()) for d in (0.0, 0.5, 1.0))
    assert 0.87 < start.min() < start.max() <= 0.98
    assert start.mean() > middle.mean() > end.mean()
    assert 0.02 <= end.min() < end.max() < 0.13
    assert annealed_times(3, 0.5, high=0.6, low=0.4, width=0.0).tolist() == pytest.approx(3 * [0.5])
    assert torch.equal(start, annealed_times(1000, 0.0, generator=seeded()))


def test_bad_input_is_named():
    p, x = gaussian(Linear()), normal(2, 2)
    t, eps = torch.tensor([0.5, 1.0]).double(), normal(2, 2)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser"):
        sds(nn.Identity(), x, t, eps)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser"):
        vsd(p, nn.Identity(), x, t, eps)
    with pytest.raises(ValueError, match="must be finite, of shape"):
        sds(p, x, t, eps, weight=data_weight)  # alpha(1) = 0 on the straight path
    with pytest.raises(ValueError, match="must be finite, of shape"):
        sds(p, x, t, eps, weight=lambda path, t: noise_weight(path, t)[:, None])
    with pytest.raises(ValueError, match="t must"):
        sds(p, x, t + 1, eps)
    with pytest.raises(ValueError, match="low < high"):
        annealed_times(3, 1.5)
