"""Real handwritten digits that need no download."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["digits"]

_SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}


def digits(split: str = "all") -> tuple[Tensor, Tensor]:
    """Load the 1,797 handwritten 8x8 digits that ship inside scikit-learn.

    Args:
        split: "train", the first 1,500; "test", the last 297; or "all".

    Returns:
        Images (N, 1, 8, 8) float32 in [-1, 1], -1 being the background, and labels (N,) int64.

    Raises:
        ValueError: If `split` is none of the three.

    References:
        Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI repository.
    """
    from sklearn.datasets import load_digits

    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}; got {split!r}")
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1  # pixels are 0 to 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    return images[_SPLITS[split]], labels[_SPLITS[split]]
