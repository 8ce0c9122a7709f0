"""A small random autoencoder of diffusers, in a folder."""

import torch


def save_vae(folder, **options):
    """Save an AutoencoderKL that halves images once."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            latent_channels=4,
            **options,
        )
    model.save_pretrained(folder)
    return model.eval()
