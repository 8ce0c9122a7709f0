"""Style transfer: the places of one image, the texture of another.

Gatys, Ecker & Bethge, 2016, "Image Style Transfer Using Convolutional Neural Networks". Features
are any function that turns images into a list of maps: fixed random filters, or the layers of a
trained network. Both losses are relative, so that one weight suits features of every scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.denoisers import check_gradients

__all__ = [
    "RandomFeatures",
    "VGGFeatures",
    "content_loss",
    "gram",
    "style_loss",
    "total_variation",
    "transfer",
    "vgg_features",
]

Features = Callable[[Tensor], list[Tensor]]
"""``features(images (B, C, H, W)) -> [maps (B, C_l, H_l, W_l), ...]``."""

GATYS_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1", "relu4_2")


class RandomFeatures(nn.Module):
    """Random filters at several scales, never trained: enough for textures.

    The image is made smaller by each scale, and on each size there is one layer of random filters
    with a ReLU. Ustyuzhaninov et al., 2017, "What does it take to generate natural textures?",
    get textures of high quality from one layer of random filters of several sizes; a large filter
    is here a small one on a smaller image.

    Args:
        scales: factors by which the image is made smaller, rising; one list entry each.
        channels: filters of each scale.
        in_channels: 1 for grey images, 3 for colour.
        kernel: side of the filters, odd.
        centred: take its mean out of each filter, so that it sees changes only. Otherwise most
            of the style is the mean colour, and a transfer little more than a change of tones.
        seed: decides the filters.

    Raises:
        ValueError: if an argument is out of range; and, from a call, if the images do not have
            shape (B, in_channels, H, W), or are smaller than a filter at the largest scale.
    """

    def __init__(
        self,
        scales: Sequence[int] = (1, 2, 4),
        channels: int = 32,
        *,
        in_channels: int = 3,
        kernel: int = 5,
        centred: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if not scales or list(scales) != sorted(set(scales)) or min(scales) < 1:
            raise ValueError(f"scales must be rising whole numbers from 1 on; got {scales}")
        if min(channels, in_channels, kernel) < 1 or kernel % 2 == 0:
            raise ValueError(
                f"channels, in_channels and kernel must be positive, kernel odd; got {channels}, "
                f"{in_channels} and {kernel}"
            )
        generator = torch.Generator().manual_seed(seed)
        shape = (len(scales), channels, in_channels, kernel, kernel)
        filters = torch.randn(shape, generator=generator) / (kernel * math.sqrt(in_channels))
        if centred:
            filters = filters - filters.mean((3, 4), keepdim=True)
        self.scales = tuple(scales)
        self.register_buffer("filters", filters)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of each scale, fine ones first, shape (B, channels, H_l, W_l).

        Places without a whole window are left out: a padded border would be part of the style.
        """
        filters = cast(Tensor, self.filters).to(images)
        channels, kernel = filters.shape[2:4]
        least = kernel * self.scales[-1]
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < least:
            raise ValueError(
                f"images must have shape (B, {channels}, H, W) with sides of at least {least}; "
                f"got {tuple(images.shape)}"
            )
        pairs = zip(self.scales, filters, strict=True)
        return [F.relu(F.conv2d(F.avg_pool2d(images, scale), f)) for scale, f in pairs]


class VGGFeatures(nn.Module):
    """Some layers of a VGG network (Simonyan & Zisserman, 2015), named as Gatys et al. do.

    ``relu4_2`` is the second convolution after the third pooling, with its ReLU.

    Args:
        layers_of: the convolutional part of the network, ``vgg19(...).features``.
        layers: names of the layers to give back, in this order.

    Raises:
        ValueError: if the network has no layer of that name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers_of: nn.Sequential, layers: Sequence[str] = GATYS_LAYERS):
        super().__init__()
        names, block, place = [], 1, 0
        for module in layers_of:
            block += isinstance(module, nn.MaxPool2d)
            place = 0 if isinstance(module, nn.MaxPool2d) else place + isinstance(module, nn.Conv2d)
            names.append(f"relu{block}_{place}" if isinstance(module, nn.ReLU) else "")
        known = list(filter(None, names))
        if not layers or not set(layers) <= set(known):
            raise ValueError(f"layers must be some of {', '.join(known)}; got {list(layers)}")
        last = max(names.index(layer) for layer in layers)
        self.names, self.layers = names[: last + 1], tuple(layers)
        self.network = nn.Sequential(*list(layers_of)[: last + 1]).eval()
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values)[:, None, None])  # of ImageNet

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of each layer, for colour images (B, 3, H, W) in [-1, 1]."""
        x, found = ((images + 1) / 2 - self.mean) / self.std, {}
        for name, module in zip(self.names, self.network, strict=True):
            x = module(x)
            found[name] = x
        return [found[layer] for layer in self.layers]


def vgg_features(
    network: nn.Module | None = None, layers: Sequence[str] = GATYS_LAYERS
) -> VGGFeatures:
    """The features of Gatys et al.: five layers of VGG-19 for style, the last entry for content.

    Call ``transfer(..., style_layers=range(5), content_layers=[5])`` with them.

    Args:
        network: a VGG of torchvision with its weights; without one, torchvision downloads those
            of VGG-19 (550 MB).
        layers: names of the layers.

    Raises:
        ImportError: if no network is given, and torchvision is missing or does not fit torch.
        OSError: if its weights cannot be downloaded.
        ValueError: if the network has no such layers.
    """
    network = _trained_vgg() if network is None else network
    return VGGFeatures(cast(nn.Sequential, network.features), layers)


def _trained_vgg() -> nn.Module:
    """VGG-19 with the weights that torchvision downloads."""
    try:
        from torchvision.models import vgg19
    except (ImportError, RuntimeError) as error:  # the latter: built for another torch
        raise ImportError(
            "vgg_features needs torchvision, which the course does not install: "
            "`pip install torchvision` in the version that fits your torch, or give "
            "`network`, or use RandomFeatures, which need no weights"
        ) from error
    try:
        network: nn.Module = vgg19(weights="DEFAULT")
    except OSError as error:
        raise OSError(
            f"the weights of VGG-19 cannot be downloaded ({error}): try again with a network, or "
            f"give `network`, or use RandomFeatures, which need no weights"
        ) from error
    return network


def gram(maps: Tensor) -> Tensor:
    """The second moment of the features over all places, E[f f^T]: what is left without places.

    Gatys et al., eq. 3, divided by the number H W of places, so that the size of an image does
    not count.

    Args:
        maps: features, shape (B, C, H, W).

    Returns:
        Shape (B, C, C).
    """
    f = maps.flatten(2)
    return f @ f.mT / f.shape[2]


def style_loss(maps: Sequence[Tensor], grams: Sequence[Tensor]) -> Tensor:
    """||G - A||^2 / ||A||^2 of the Gram matrices, the mean over layers; Gatys et al., eq. 4 and 5.

    They divide by a constant of the layer, 4 C^2, instead of the size of A.

    Args:
        maps: features of the images, shape (B, C_l, H_l, W_l) for each layer l.
        grams: Gram matrices A of the style, shape (B, C_l, C_l) or (1, C_l, C_l).

    Returns:
        One number for each image, shape (B,).
    """
    return torch.stack([_relative(gram(m), a) for m, a in zip(maps, grams, strict=True)]).mean(0)


def content_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """||F - P||^2 / ||P||^2, place by place, the mean over layers; Gatys et al., eq. 1.

    They take half of the squared error and do not divide by the size of P.

    Args:
        maps: features of the images, shape (B, C_l, H_l, W_l) for each layer l.
        targets: features P of the content, of the same shapes.

    Returns:
        One number for each image, shape (B,).
    """
    return torch.stack([_relative(m, p) for m, p in zip(maps, targets, strict=True)]).mean(0)


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbours, down and to the right, shape (B,).

    Mahendran & Vedaldi, 2015, "Understanding Deep Image Representations by Inverting Them",
    eq. 5 with beta = 2, as a mean.
    """
    down, right = images.diff(dim=2), images.diff(dim=3)
    return down.square().mean((1, 2, 3)) + right.square().mean((1, 2, 3))


def transfer(
    content: Tensor,
    style: Tensor,
    features: Features,
    *,
    content_weight: float = 1.0,
    style_weight: float = 1.0,
    smoothness: float = 0.0,
    content_layers: Sequence[int] = (0,),
    style_layers: Sequence[int] | None = None,
    steps: int = 80,
    lr: float = 0.05,
    progress: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Move the pixels until the image has its own content and the style of another.

    Gatys et al., eq. 7: the weighted sum of :func:`content_loss`, :func:`style_loss` and
    :func:`total_variation`, minimised from the content on. Adam in place of their L-BFGS keeps
    the images of a batch apart from each other, and all pixels inside [-1, 1] after every step.

    Args:
        content: images whose places are kept, (B, C, H, W) in [-1, 1].
        style: the style of each, or one for all; (B, C, H', W') or (1, C, H', W').
        features: images -> list of maps, differentiable.
        content_weight: weight of the content loss.
        style_weight: weight of the style loss.
        smoothness: weight of the total variation.
        content_layers: which entries of ``features(x)`` hold the content.
        style_layers: which hold the style; all by default.
        steps: steps of Adam.
        lr: its step size; pixels move by about so much in a step.
        progress: show a progress bar.
        callback: called with the step, from 1 on, and the image.

    Returns:
        Shape (B, C, H, W), in [-1, 1].

    Raises:
        ValueError: if shapes do not fit, images leave [-1, 1], a weight is negative, there are no
            steps, no such layers, or the call stands inside ``torch.inference_mode()``.
    """
    weights = (content_weight, style_weight, smoothness)
    _check(content, style, weights, steps)
    loss = _loss(features, content, style, weights, content_layers, style_layers)
    x = content.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = torch.optim.Adam([x], lr)
    for step in tqdm(range(1, steps + 1), desc="style transfer", disable=not progress):
        with torch.enable_grad():
            x.grad = torch.autograd.grad(loss(x).sum(), x)[0]  # and none for a network's weights
        optimizer.step()
        x.data.clamp_(-1, 1)
        if callback is not None:
            callback(step, x.detach().clone())
    return x.detach()


@torch.no_grad()
def _loss(
    features: Features,
    content: Tensor,
    style: Tensor,
    weights: tuple[float, float, float],
    content_layers: Sequence[int],
    style_layers: Sequence[int] | None,
) -> Callable[[Tensor], Tensor]:
    """The loss of images, (B, C, H, W) -> (B,); what it aims at is computed once."""
    places, looks = features(content), features(style)
    style_layers = range(len(places)) if style_layers is None else style_layers
    targets = _chosen(places, content_layers, "content_layers")
    grams = [gram(look) for look in _chosen(looks, style_layers, "style_layers")]

    def loss(x: Tensor) -> Tensor:
        maps = features(x)
        kept = content_loss([maps[i] for i in content_layers], targets)
        painted = style_loss([maps[i] for i in style_layers], grams)
        terms = (kept, painted, total_variation(x))
        return torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum(0)

    return loss


def _relative(value: Tensor, target: Tensor) -> Tensor:
    """Squared error over squared size of the target, for each row, shape (B,)."""
    size = target.flatten(1).square().sum(1).clamp_min(torch.finfo(target.dtype).eps)
    return (value - target).flatten(1).square().sum(1) / size


def _chosen(maps: list[Tensor], layers: Sequence[int], name: str) -> list[Tensor]:
    if not layers or not all(-len(maps) <= i < len(maps) for i in layers):
        raise ValueError(f"{name} must be some of 0 to {len(maps) - 1}; got {list(layers)}")
    return [maps[i] for i in layers]


def _check(content: Tensor, style: Tensor, weights: tuple[float, ...], steps: int) -> None:
    check_gradients("transfer")
    for name, images in (("content", content), ("style", style)):
        _check_images(images, name)
    if style.shape[1] != content.shape[1] or len(style) not in (1, len(content)):
        raise ValueError(
            f"style must have the channels of content and as many images, or one; got "
            f"{tuple(style.shape)} for content {tuple(content.shape)}"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"weights must be finite and not negative; got {weights}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")


def _check_images(images: Any, name: str) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = (tuple(images.shape), images.dtype) if isinstance(images, Tensor) else type(images)
        raise ValueError(f"{name} must be images (B, C, H, W) of floating point; got {got}")
    if not bool((images.abs() <= 1).all()):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"{name} must lie in [-1, 1]; got values from {low:.3g} to {high:.3g}")
