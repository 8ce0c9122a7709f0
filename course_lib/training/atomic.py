"""Files that are there in full or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there in full or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        content: what to write.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file that was there is intact.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"cannot write {path.name} in folder {path.parent} ({error.strerror}); "
            "earlier files there are intact: make room or choose another folder, and run again",
        ) from error
