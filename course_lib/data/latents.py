"""Latents of images, in a folder of safetensors files such as `course-lib encode` writes.

Each file holds a tensor `latents`, (n, C, H, W) or (n, L), and with classes a tensor `labels`,
(n,). Files of other tools are read too if their tensors have these names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LatentsInfo", "latents", "latents_info", "write_latents"]

RECORD = "latents.json"
HELD_OUT = 10  # every tenth latent belongs to the test split


class LatentsInfo(NamedTuple):
    """What a folder of latents holds."""

    shape: tuple[int, ...]
    """Shape of one latent."""
    classes: int
    """Number of classes; 0 where there are no labels."""
    autoencoder: str | None
    """Name or folder of the autoencoder that made them, where the folder says so."""


def latents(folder: str | Path, split: str = "train") -> tuple[Tensor, Tensor | None]:
    """Load the latents of a folder.

    Args:
        folder: folder with `*.safetensors` files.
        split: "test", every tenth latent; or "train", the others.

    Returns:
        Latents (N, ...) float32, and labels (N,) int64 or None.

    Raises:
        ValueError: the split is none of these, the folder holds no latents, a file is damaged, or
            the files differ in shape or have labels only in part.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test; got {split!r}")
    parts = [_read(path) for path in _files(folder)]
    kinds = {(tuple(x.shape[1:]), labels is not None) for x, labels in parts}
    if len(kinds) > 1:
        raise ValueError(f"files of {folder} differ in (shape, labels): {sorted(kinds)}")
    x = torch.cat([x for x, _ in parts]).float()
    labels = [labels.long() for _, labels in parts if labels is not None]
    chosen = (torch.arange(len(x)) % HELD_OUT == 0) == (split == "test")
    return x[chosen], torch.cat(labels)[chosen] if labels else None


def latents_info(folder: str | Path) -> LatentsInfo:
    """What a folder holds, without loading the latents.

    Raises:
        ValueError: it holds none, or a file is damaged.
    """
    files, record, classes = _files(folder), Path(folder) / RECORD, 0
    for path in files:
        with _opened(path) as file:
            shape = tuple(file.get_slice("latents").get_shape()[1:])
            labels = _labels(file)
            classes = classes if labels is None else max(classes, 1 + int(labels.max()))
    made = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    return LatentsInfo(shape, classes, made.get("autoencoder"))


def write_latents(folder: Path, number: int, x: Tensor, labels: Tensor | None = None) -> None:
    """Write one file of latents, in half precision.

    Args:
        folder: an existing folder.
        number: number of the file, from 0.
        x: latents, shape (n, ...).
        labels: their classes, shape (n,), or None.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {"latents": x.half().contiguous()}
    if labels is not None:
        tensors["labels"] = labels
    (folder / f"latents-{number:05d}.safetensors").write_bytes(save(tensors))


def _files(folder: str | Path) -> list[Path]:
    found = sorted(Path(folder).glob("*.safetensors"))
    if not found:
        raise ValueError(f"{folder} holds no latents (*.safetensors): course-lib encode makes them")
    return found


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    with _opened(path) as file:
        return file.get_tensor("latents"), _labels(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or holds no tensor latents: {error}") from error


def _labels(file: Any) -> Tensor | None:
    return file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118
