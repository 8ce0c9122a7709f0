"""Checkpoints that survive a kill, a full disk and a half-written file.

A checkpoint is a file and, beside it, its SHA-256 in the format of `sha256sum`. Both are written
under another name, flushed to the disk and then renamed, so that a name that exists is a file that
was complete; the hash finds what the disk or a copy damaged later. The last two are kept.

This module finds and reads them, without Lightning; `checkpoint_io` writes them, as Lightning asks.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "averaged_weights",
    "checkpoint_path",
    "clear",
    "hash_file",
    "is_valid",
    "newest",
]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Name of the checkpoint that holds the state after `step` steps."""
    return folder / f"step-{step:09d}.ckpt"


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint of a folder, or None.

    Warns about each damaged one that it passes over.
    """
    for path in _checkpoints(folder)[::-1]:
        if is_valid(path):
            return path
        warnings.warn(
            f"checkpoint {path} is damaged or incomplete; using the one before it", stacklevel=3
        )
    return None


def is_valid(path: Path) -> bool:
    """Whether the SHA-256 of a checkpoint is the one that was noted when it was written."""
    note = hash_file(path)
    if not (path.is_file() and note.is_file()):
        return False
    return note.read_text().split()[:1] == [hashlib.sha256(path.read_bytes()).hexdigest()]


def clear(folder: Path, keep: int = 0) -> None:
    """Remove all checkpoints of a folder but the newest `keep`, and leftovers of killed writes."""
    checkpoints = _checkpoints(folder)
    for path in checkpoints[: len(checkpoints) - keep]:
        path.unlink(missing_ok=True)
        hash_file(path).unlink(missing_ok=True)
    for path in folder.glob("step-*.tmp"):
        path.unlink(missing_ok=True)


def averaged_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averaged weights of a checkpoint, and the recipe noted in it.

    Raises:
        ValueError: the file is damaged, or no recipe was noted.
    """
    if not is_valid(path):
        raise ValueError(f"checkpoint {path} is damaged or incomplete (SHA-256)")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if "recipe" not in stored:
        raise ValueError(
            f"checkpoint {path} does not say how its model is built: it is not of course-lib train"
        )
    prefix = "averaged.module."
    weights = {
        name.removeprefix(prefix): value
        for name, value in stored["state_dict"].items()
        if name.startswith(prefix)
    }
    return weights, stored["recipe"]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"))


def hash_file(path: Path) -> Path:
    """Where the hash of a checkpoint stands."""
    return path.with_name(path.name + ".sha256")
