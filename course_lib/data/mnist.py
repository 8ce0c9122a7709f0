"""MNIST, downloaded once and checked, or read from a folder."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["MIRRORS", "SHA256", "mnist", "read_idx"]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

_PREFIXES = {"train": "train", "test": "t10k"}


def mnist(
    split: str = "train", *, folder: str | os.PathLike[str] | None = None, size: int = 28
) -> tuple[Tensor, Tensor]:
    """Load MNIST: 60,000 handwritten digits to train on, 10,000 to test on.

    Without a folder the two files of the split are downloaded from the first of `MIRRORS` that
    has them, and kept in the operating system's cache. Every file is compared with its SHA-256
    before it is read: one in the cache that differs is fetched again, one in a folder is refused.

    Args:
        split: "train" or "test".
        folder: Folder with the official `*-ubyte.gz` files; by default the one that the environment
            variable COURSE_DATA_DIR names, if it is set.
        size: Side of the images, 28 or more; larger images get a frame of background.

    Returns:
        Images (N, 1, size, size) float32 in [-1, 1], -1 being the background; labels (N,) int64.

    Raises:
        ValueError: If `split` or `size` is not allowed, or a file in the folder is corrupt.
        FileNotFoundError: If the folder lacks a file.
        ConnectionError: If no mirror delivers an intact file.
        OSError: If the cache cannot be written, for instance because the disk is full.

    References:
        LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".
    """
    if split not in _PREFIXES:
        raise ValueError(f"split must be one of {', '.join(_PREFIXES)}; got {split!r}")
    if size < 28:
        raise ValueError(f"size must be at least 28, got {size}")
    folder = folder or os.environ.get("COURSE_DATA_DIR") or None
    images, labels = (
        read_idx(gzip.decompress(_load(f"{_PREFIXES[split]}-{kind}-ubyte", folder)))
        for kind in ("images-idx3", "labels-idx1")
    )
    before, after = (size - 28) // 2, (size - 27) // 2
    framed = pad(images[:, None], (before, after, before, after))
    return framed.float().div_(127.5).sub_(1), labels.long()


def read_idx(data: bytes) -> Tensor:
    """Decode an array of bytes in the IDX format.

    Args:
        data: Two zero bytes, the type 0x08, the number of dimensions, each dimension as a
            big-endian 32-bit integer, the values.

    Returns:
        The array, uint8.

    Raises:
        ValueError: If the header is another, or the number of values does not fit it.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"data must start with the IDX magic 00 00 08, got {data[:3].hex(' ')!r}")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start].ljust(start - 4, b"\x00"))
    if len(data) <= start or len(data) - start != math.prod(shape):
        raise ValueError(f"data must be {math.prod(shape)} bytes after {start}, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


def _load(name: str, folder: str | os.PathLike[str] | None) -> bytes:
    """The intact content of one file, compressed."""
    if folder is None:
        return _download(name).read_bytes()
    path = Path(folder) / f"{name}.gz"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: put the official file there, or give no folder and unset"
            " COURSE_DATA_DIR to download it"
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ValueError(f"{path} is corrupt: its SHA-256 is not the official one; replace it")
    return data


def _download(name: str) -> Path:
    """Path of the file in the cache, whereto it is fetched unless it is there intact."""
    import pooch
    from requests.exceptions import RequestException

    cache, file, failures = pooch.os_cache("course_lib"), f"{name}.gz", []
    for mirror in MIRRORS:
        try:
            # Writes to a temporary file, which gets its name once the hash agrees.
            path = pooch.retrieve(mirror + file, SHA256[name], file, cache, progressbar=True)
            return Path(path)
        except (RequestException, ValueError) as error:  # no answer, or another hash
            failures.append(f"  {mirror}: {error}")
        except OSError as error:
            reason = f"{file} cannot be stored: {error.strerror or error}"
            raise OSError(error.errno, reason, str(cache)) from error
    advice = (
        f"no mirror delivered {file}; connect to the network, or set COURSE_DATA_DIR to a folder"
        f" with the official files ({', '.join(f'{known}.gz' for known in SHA256)})"
    )
    raise ConnectionError("\n".join([advice, *failures]))
