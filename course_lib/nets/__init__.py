"""Networks. Each is called net(x, t, cond=None) and returns the shape of x.

An autoencoder, a text encoder and a CLIP stand beside them.
"""

from course_lib.nets.attention import CrossAttention, SelfAttention, attention_maps
from course_lib.nets.clip import CLIP, ContrastiveLoss, info_nce
from course_lib.nets.dit import DiT
from course_lib.nets.embeddings import sinusoidal
from course_lib.nets.mlp import MLP
from course_lib.nets.patches import patchify, position_embedding, unpatchify
from course_lib.nets.text_encoder import TextEncoder
from course_lib.nets.unet import UNet
from course_lib.nets.vae import ConvVAE, vae_loss

__all__ = [
    "CLIP",
    "MLP",
    "ContrastiveLoss",
    "ConvVAE",
    "CrossAttention",
    "DiT",
    "SelfAttention",
    "TextEncoder",
    "UNet",
    "attention_maps",
    "info_nce",
    "patchify",
    "position_embedding",
    "sinusoidal",
    "unpatchify",
    "vae_loss",
]
