"""Autoencoders by name: the course's own, and those of diffusers, from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.cli.models import find_model
from course_lib.nets.vae import ConvVAE, draw_latents

__all__ = ["Autoencoder", "DiffusersVAE", "OwnVAE", "find_autoencoder"]

WEIGHTS = "diffusion_pytorch_model*.safetensors"


class Autoencoder:
    """Images in [-1, 1] as latents of about unit variance, and back; in batches, on its own device.

    A subclass sets the attributes, and implements `latent_shape` and one batch of each way.

    Args:
        model: the network; it stays on its device.
        channels: channels of the images.
        batch: images at a time.
    """

    def __init__(self, model: nn.Module, channels: int, batch: int) -> None:
        self.model, self.channels, self.batch = model.eval(), channels, batch

    def latent_shape(self, size: int) -> tuple[int, ...]:
        """Shape of the latents of images of this side.

        Raises:
            ValueError: images cannot have this side.
        """
        raise NotImplementedError

    def encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draws from the distribution of the latents.

        Args:
            images: shape (B, C, H, W), in [-1, 1].
            generator: source of the draws.

        Returns:
            Shape (B, ...), on the CPU.

        Raises:
            ValueError: the images have another number of channels, or a size that cannot be.
        """
        if images.shape[1] != self.channels:
            raise ValueError(
                f"images must have {self.channels} channels for this autoencoder; "
                f"got {images.shape[1]}"
            )
        self.latent_shape(images.shape[-1])
        return self._batched(lambda x: self._encode(x, generator), images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, ...) as images (B, C, H, W), on the CPU."""
        return self._batched(self._decode, latents)

    def _encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def _batched(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        like = next(self.model.parameters())
        return torch.cat([function(part.to(like)).cpu().float() for part in x.split(self.batch)])


class OwnVAE(Autoencoder):
    """A :class:`~course_lib.nets.vae.ConvVAE`, such as the pretrained one for MNIST."""

    model: ConvVAE

    def __init__(self, model: ConvVAE) -> None:
        super().__init__(model, model.channels, batch=500)

    def latent_shape(self, size: int) -> tuple[int, ...]:
        """(L,); images have the side that the network was made for."""
        if size != self.model.image_size:
            raise ValueError(f"images must have side {self.model.image_size}; got {size}")
        return (self.model.latent_dim,)

    def _encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.model.encode(images)
        return draw_latents(mean.cpu(), log_var.cpu(), generator)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


class DiffusersVAE(Autoencoder):
    """An `AutoencoderKL` of diffusers, such as that of Stable Diffusion.

    Its latents are shifted and scaled as its configuration says: (z - shift) * scale.
    """

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.config.in_channels, batch=8)
        self.scale = model.config.scaling_factor
        self.shift = model.config.shift_factor or 0.0

    def latent_shape(self, size: int) -> tuple[int, ...]:
        """(C, H, W); the side of images is halved at every level but one."""
        factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        if size % factor:
            raise ValueError(f"images must have a side divisible by {factor}; got {size}")
        return self.model.config.latent_channels, size // factor, size // factor

    def _encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        z = self.model.encode(images).latent_dist.sample(generator)
        return (z - self.shift) * self.scale

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.scale + self.shift).sample


def find_autoencoder(name: str, device: str | None = None) -> Autoencoder:
    """An autoencoder.

    Args:
        name: a folder with an `AutoencoderKL` of diffusers, or with a whole pipeline that has one
            in `vae`; or a `ConvVAE`, as :func:`course_lib.cli.models.find_model` finds models.
        device: where it computes; a GPU by default if there is one.

    Raises:
        ValueError: there is no such autoencoder, its files are incomplete, or diffusers is not
            installed.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for folder in (Path(name), Path(name) / "vae"):
        if (folder / "config.json").is_file():
            return DiffusersVAE(_from_diffusers(folder).to(device))
    model, _ = find_model(name)
    if not isinstance(model, ConvVAE):
        raise ValueError(
            f"autoencoder must be a ConvVAE, or a folder with an AutoencoderKL of diffusers; "
            f"{name} holds a {type(model).__name__}"
        )
    return OwnVAE(model.to(device))


def _from_diffusers(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text("utf-8")).get("_class_name")
    if kind != "AutoencoderKL":
        raise ValueError(f"autoencoder {folder} must be an AutoencoderKL; its config says {kind!r}")
    if not list(folder.glob(WEIGHTS)):
        raise ValueError(f"autoencoder {folder} lacks its weights, {WEIGHTS}")
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            f"autoencoder {folder} needs diffusers: pip install 'course-lib[latents]' ({error})"
        ) from error
    # Safetensors alone: nothing is unpickled. The other option needs another package.
    options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    return AutoencoderKL.from_pretrained(folder, **options)
