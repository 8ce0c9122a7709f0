"""Quality of digit images as a small classifier sees it.

The Frechet distance compares its features of two sets of images; class agreement asks whether it
reads the digit that was asked for.
"""

import torch
from torch import Tensor, nn

from course_lib.transport.gaussian import gaussian_wasserstein2
from course_lib.transport.wasserstein import pair

__all__ = ["class_agreement", "digit_features", "digit_logits", "frechet_distance"]

_CLASSIFIERS = {8: "digits-classifier", 28: "mnist-classifier"}


def digit_features(
    images: Tensor, classifier: nn.Module | None = None, batch_size: int = 512
) -> Tensor:
    """Features of digit images: the layer before the classifier's logits.

    Args:
        images: shape (N, 1, H, W) in [-1, 1].
        classifier: a module with ``features(images) -> (N, F)``; by default the pretrained one
            for the image size: 8x8, 28x28, or 32x32, which is MNIST with 2 pixels of background
            on each side; those are cut off again.
        batch_size: images per forward pass.

    Returns:
        Features, shape (N, F), on the CPU, without gradient.

    Raises:
        ValueError: if no pretrained classifier fits the shape of ``images``.
    """
    return _batched("features", images, classifier, batch_size)


def digit_logits(
    images: Tensor, classifier: nn.Module | None = None, batch_size: int = 512
) -> Tensor:
    """Class logits of digit images.

    Args:
        images: shape (N, 1, H, W) in [-1, 1].
        classifier: a module ``images -> (N, K)``; by default the pretrained one for the size,
            as for :func:`digit_features`.
        batch_size: images per forward pass.

    Returns:
        Logits, shape (N, K), on the CPU, without gradient.

    Raises:
        ValueError: if no pretrained classifier fits the shape of ``images``.
    """
    return _batched("__call__", images, classifier, batch_size)


def class_agreement(logits: Tensor, labels: Tensor) -> float:
    """Fraction of samples whose most likely class is the label they were asked for.

    Args:
        logits: shape (N, K), for instance from :func:`digit_logits`.
        labels: the conditions, int64, shape (N,).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the shapes do not match or there is no sample.
    """
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must have shape (N, K) and labels (N,), N >= 1; "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return (logits.argmax(1).cpu() == labels.cpu()).double().mean().item()


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Frechet distance between features: W2^2 of the Gaussians fitted to them.

    With Inception features this is FID (Heusel et al., 2017, equation 6); here the features are
    those of :func:`digit_features`, so numbers compare within this course only. The estimate is
    biased upwards for small samples: compare at equal N.

    Args:
        features_x: shape (N, F), N >= 2.
        features_y: shape (M, F), M >= 2.

    Returns:
        The squared distance, as FID is reported.

    Raises:
        ValueError: if dimensions differ, or a sample is too small or not finite.
    """
    a, b = pair(features_x, features_y, least=2)
    covariances = [torch.cov(p.T).reshape(p.shape[1], p.shape[1]) for p in (a, b)]
    return gaussian_wasserstein2(a.mean(0), covariances[0], b.mean(0), covariances[1]) ** 2


def _pretrained(images: Tensor) -> tuple[nn.Module, Tensor]:
    """The classifier that ships for images of this size, and what it sees of them."""
    padded = images.shape[2:] == (32, 32)  # MNIST
    seen = images[..., 2:-2, 2:-2] if padded else images
    size = seen.shape[-1]
    if seen.ndim != 4 or seen.shape[1:] != (1, size, size) or size not in _CLASSIFIERS:
        raise ValueError(
            "images must have shape (N, 1, S, S) with S = 8, 28 or 32; got "
            f"{tuple(images.shape)}; pass a classifier for other shapes"
        )
    from course_lib.pretrained import load_pretrained

    return load_pretrained(_CLASSIFIERS[size]), seen


def _batched(method: str, images: Tensor, classifier: nn.Module | None, batch_size: int) -> Tensor:
    """Apply a method of the classifier by batches, in evaluation mode; leave the mode as found."""
    model, images = _pretrained(images) if classifier is None else (classifier, images)
    function = getattr(model, method)
    parameter = next(model.parameters(), images)  # where, and in what precision, to compute
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([function(b.to(parameter)).cpu() for b in images.split(batch_size)])
    finally:
        model.train(training)
