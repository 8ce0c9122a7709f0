"""What the executed pages depend on besides their own text, as one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["hash_of", "library_hash"]

LIBRARY = [f"course_lib/**/*.{kind}" for kind in ("py", "json", "yaml")]


def hash_of(root: Path, *patterns: str) -> str:
    """Return a hash of the names and contents of the files that match."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def library_hash(root: Path) -> str:
    """Return a hash of the package, the measurements that pages read, and the pinned versions.

    The weights of pretrained models have their own hashes in a JSON file of the package.
    """
    return hash_of(root, *LIBRARY, "book/_data/*.json", "requirements.txt")
