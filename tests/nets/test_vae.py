import copy
import math

import pytest
import torch
from torch import nn

from course_lib.nets.vae import ConvVAE, VAELoss, divergence, draw_latents, vae_loss
from course_lib.training import fit


@pytest.fixture
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvVAE(8, channels=2, latent_dim=3, width=4).double()


@pytest.fixture
def images(generator):
    return torch.rand(16, 2, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1


def test_shapes_and_range(vae, images):
    mean, log_var = vae.encode(images)
    assert mean.shape == log_var.shape == (16, 3)
    decoded = vae.decode(100 * mean)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("size", [0, 3, 30])
def test_sizes_that_do_not_halve_twice(size):
    with pytest.raises(ValueError, match=f"divisible by 4; got {size}"):
        ConvVAE(size)


def test_images_of_another_shape(vae, images):
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2, 8, 8\); got \(16, 1, 8, 8\)"):
        vae.encode(images[:, :1])


def test_divergence_is_that_of_torch(generator):
    mean, log_var = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    own = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = torch.distributions.kl_divergence(own, prior).sum(1)
    torch.testing.assert_close(divergence(mean, log_var), wanted)


def test_draws_have_the_mean_and_the_variance(generator):
    mean, log_var = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0])
    z = draw_latents(mean.expand(40_000, 2), log_var.expand(40_000, 2), generator)
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), log_var.exp(), atol=0, rtol=0.05)


def test_the_loss_is_the_negative_evidence_bound(vae, images):
    """Of a decoder with noise of variance beta / 2, but for a constant, per number, times beta."""
    beta, numbers = 0.3, images[0].numel()
    reconstruction, mean, log_var = vae(images, torch.Generator().manual_seed(4))
    noise = torch.distributions.Normal(reconstruction, math.sqrt(beta / 2))
    constant = 0.5 * numbers * math.log(math.pi * beta)
    log_p = noise.log_prob(images).flatten(1).sum(1) + constant
    bound = (log_p - divergence(mean, log_var)).mean()
    loss = vae_loss(vae, images, beta=beta, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(loss, -beta * bound / numbers)


def test_the_weight_as_an_option(vae, images):
    losses = [
        objective(vae, images, None, generator=torch.Generator().manual_seed(0))
        for objective in (VAELoss(), VAELoss(0.0), vae_loss)
    ]
    assert losses[0] == losses[2] > losses[1]
    with pytest.raises(ValueError, match="beta must be at least 0; got -1"):
        VAELoss(-1)


def test_scale_does_not_change_what_is_reconstructed(vae, images):
    """encode, draw and decode is forward, whatever the stored scale."""
    wanted, mean, log_var = vae.eval()(images, torch.Generator().manual_seed(1))
    vae.latent_mean += 2
    vae.latent_std *= 5
    z = draw_latents(*vae.encode(images), torch.Generator().manual_seed(1))
    torch.testing.assert_close(vae.decode(z), wanted)
    torch.testing.assert_close(vae.encode(images)[0], (mean - 2) / 5)
    torch.testing.assert_close(vae.encode(images)[1], log_var - 2 * math.log(5))


def test_scale_follows_the_latents_of_training_alone(vae, images):
    before = copy.deepcopy(vae.state_dict())
    vae.eval()(images)
    assert torch.equal(vae.latent_std, before["latent_std"])
    vae.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        vae(images, generator)
    z = draw_latents(*vae.encode(images.repeat(500, 1, 1, 1)), generator)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(3).double(), atol=0.1, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())


def test_fit_lowers_the_loss_and_its_average_has_the_scale(images):
    vae = ConvVAE(8, channels=2, latent_dim=3, width=4)
    options = {"objective": vae_loss, "steps": 60, "lr": 1e-2, "progress": False, "ema": 0.9}
    averaged = fit(vae, images.float(), **options)
    assert averaged.losses[-5:].mean() < 0.9 * averaged.losses[:5].mean()
    assert torch.equal(averaged.latent_std, vae.latent_std)
    assert not torch.equal(averaged.latent_std, torch.ones(3))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_every_layer_is_used_once():
    vae = ConvVAE(12, latent_dim=5, width=6)
    assert [m.out_features for m in vae.modules() if isinstance(m, nn.Linear)] == [10, 3 * 9]
