"""A variational autoencoder: images as a few numbers that are nearly standard normal.

Kingma & Welling, 2014, "Auto-Encoding Variational Bayes". A diffusion model or a flow may then live
in the space of these numbers (Rombach et al., 2022, "Latent Diffusion Models").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvVAE", "VAELoss", "divergence", "draw_latents", "vae_loss"]

BETA = 0.005  # of a decoder with a standard deviation of 0.05


class ConvVAE(nn.Module):
    """Convolutions that halve the image twice, one linear map to the latents; and back.

    The latents of `encode` and `decode` have unit variance in each dimension: they are scaled by
    a running mean and standard deviation, which training fills in, as batch norm does. The loss
    does not see that scale.

    Args:
        image_size: side of the square images in pixels, divisible by 4.
        channels: channels C of the images.
        latent_dim: numbers L in a latent.
        width: channels of the first convolution; the second has twice as many.

    Raises:
        ValueError: the image size is not divisible by 4.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 64, width: int = 32
    ) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be divisible by 4; got {image_size}")
        self.image_size, self.channels, self.latent_dim = image_size, channels, latent_dim
        side, narrow = image_size // 4, width // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * width, narrow, 1), nn.Flatten(),
            nn.Linear(narrow * side**2, 2 * latent_dim),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, narrow * side**2), nn.Unflatten(1, (narrow, side, side)),
            nn.Conv2d(narrow, 2 * width, 1), nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian q(z | x) of the latents.

        Args:
            x: images, shape (B, C, image_size, image_size), in [-1, 1].

        Returns:
            Its mean and the logarithm of its variance, both of shape (B, latent_dim).

        Raises:
            ValueError: the images have another shape.
        """
        mean, log_var = self._posterior(x)
        return (mean - self.latent_mean) / self.latent_std, log_var - 2 * self.latent_std.log()

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents: (B, latent_dim) -> (B, C, image_size, image_size), in [-1, 1]."""
        return self.decoder(z * self.latent_std + self.latent_mean)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, encoded and decoded again.

        Args:
            x: images, shape (B, C, image_size, image_size).
            generator: source of the draw from q(z | x).

        Returns:
            The reconstruction, shape of `x`, and mean and logarithm of the variance of the
            unscaled latents, (B, latent_dim).

        Raises:
            ValueError: the images have another shape.
        """
        mean, log_var = self._posterior(x)
        z = draw_latents(mean, log_var, generator)
        if self.training:
            self._follow(z.detach())
        return self.decoder(z), mean, log_var

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels, size = self.channels, self.image_size
        if x.shape[1:] != (channels, size, size):
            raise ValueError(
                f"x must have shape (B, {channels}, {size}, {size}); got {tuple(x.shape)}"
            )
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    def _follow(self, z: Tensor) -> None:
        """Move the running scale a little towards that of a batch."""
        self.latent_mean.lerp_(z.mean(0).to(self.latent_mean), 0.01)
        self.latent_std.lerp_(z.std(0).to(self.latent_std), 0.01)


def draw_latents(mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A draw from N(mean, exp(log_var)), differentiable in both (ibid., section 2.4)."""
    eps = torch.empty_like(mean).normal_(generator=generator)
    return mean + (log_var / 2).exp() * eps


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) in nats, (B, L) -> (B,) (ibid., appendix B)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def vae_loss(
    model: ConvVAE,
    x0: Tensor,
    cond: Any = None,
    *,
    beta: float = BETA,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error of the reconstruction and `beta` times the divergence, both per number.

    But for constants and a factor this is the evidence bound of a decoder with independent
    Gaussian noise of variance beta / 2 (ibid., eq. 7; Higgins et al., 2017, for beta).

    Args:
        model: the autoencoder.
        x0: images, shape (B, C, H, W), in [-1, 1].
        cond: not used; here so that it is called as every objective is.
        beta: weight of the divergence.
        generator: source of the draws of latents.

    Returns:
        A scalar.
    """
    reconstruction, mean, log_var = model(x0, generator)
    rate = divergence(mean, log_var).mean() / x0[0].numel()
    return F.mse_loss(reconstruction, x0) + beta * rate


@dataclass(frozen=True)
class VAELoss:
    """`vae_loss` with another weight of the divergence, for recipes.

    Args:
        beta: the weight, at least 0.

    Raises:
        ValueError: `beta` is below 0.
    """

    beta: float = BETA

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0; got {self.beta}")

    def __call__(self, model: ConvVAE, x0: Tensor, cond: Any = None, **options: Any) -> Tensor:
        """The loss; arguments as for :func:`vae_loss`."""
        return vae_loss(model, x0, cond, beta=self.beta, **options)
