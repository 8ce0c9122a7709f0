"""Checkpoints that survive a kill, a full disk and a half-written file.

A checkpoint is a file and, beside it, its SHA-256 in the format of `sha256sum`. Both are written
under another name, flushed to the disk and then renamed, so that a name that exists is a file that
was complete; the hash finds what the disk or a copy damaged later. The last two are kept.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from course_lib.training.atomic import write_atomic

__all__ = ["AtomicCheckpointIO", "checkpoint_path", "clear", "is_valid", "newest"]

KEEP = 2


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
    note = _hash_file(path)
    if not (path.is_file() and note.is_file()):
        return False
    return note.read_text().split()[:1] == [hashlib.sha256(path.read_bytes()).hexdigest()]


def clear(folder: Path, keep: int = 0) -> None:
    """Remove all checkpoints of a folder but the newest `keep`, and leftovers of killed writes."""
    checkpoints = _checkpoints(folder)
    for path in checkpoints[: len(checkpoints) - keep]:
        path.unlink(missing_ok=True)
        _hash_file(path).unlink(missing_ok=True)
    for path in folder.glob("step-*.tmp"):
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe.

    Nothing is unpickled but tensors and plain containers (`weights_only=True`).
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` and its hash; keep the last two of the folder."""
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        # The hash first: a checkpoint whose name exists then always has its hash beside it.
        write_atomic(_hash_file(path), f"{digest}  {path.name}\n".encode())
        write_atomic(path, content)
        clear(path.parent, keep=KEEP)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, with tensors on the CPU unless told otherwise."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its hash."""
        Path(path).unlink(missing_ok=True)
        _hash_file(Path(path)).unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"))


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
