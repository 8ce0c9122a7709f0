"""How Lightning writes and reads the checkpoints of a run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import CheckpointIO

from course_lib.training.atomic import write_atomic
from course_lib.training.checkpoints import clear, hash_file

__all__ = ["AtomicCheckpointIO", "NoteRecipe"]

KEEP = 2


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
        write_atomic(hash_file(path), f"{digest}  {path.name}\n".encode())
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
        hash_file(Path(path)).unlink(missing_ok=True)


class NoteRecipe(Callback):
    """Writes into each checkpoint how its model is built, so that a folder speaks for itself.

    Args:
        recipe: plain containers.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe = recipe

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add it."""
        checkpoint["recipe"] = self.recipe
