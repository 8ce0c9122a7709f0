"""Pairs of noise and the sample that an ODE makes of it; made batch by batch, and kept on disk.

With a folder each batch becomes a file as soon as it is there, so a killed run goes on with the
next one. Beside them `pairs.json` says how they were made: other pairs are not mixed with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.training.atomic import write_atomic

__all__ = ["Pairs", "collect_pairs", "tensor_hash", "weights_hash"]


@dataclass(frozen=True)
class Pairs:
    """Data and noise that belong together, row by row.

    Args:
        x0: data, shape ``(N, *shape)``.
        eps: the noise of each, shape ``(N, *shape)``.
        cond: None, a tensor (N, ...), or a tuple of such tensors.
    """

    x0: Tensor
    eps: Tensor
    cond: Any = None

    @property
    def data(self) -> tuple[Tensor, tuple[Tensor, Any]]:
        """``(x0, (eps, cond))``: data for ``fit`` with the coupling ``fixed_pairs``."""
        return self.x0, (self.eps, self.cond)


def collect_pairs(
    make: Callable[[int, int], Pairs],
    n: int,
    batch_size: int,
    recipe: dict[str, Any],
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> Pairs:
    """Make batches of pairs, or read those that the folder has.

    A file that is damaged, or belongs to other pairs, is made again.

    Args:
        make: ``make(k, size)`` gives batch k; it must be a function of its arguments alone.
        n: number of pairs in all.
        batch_size: pairs of a batch; the last one takes what is left.
        recipe: what decides the pairs, plain values; two runs that differ in it are not joined.
        folder: where the batches are kept; None keeps none.
        progress: show a progress bar.

    Returns:
        All pairs, on the CPU.

    Raises:
        ValueError: if n or batch_size is below 1, or the folder holds pairs of another recipe.
        OSError: if a file cannot be written; those before it are intact.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    recipe = json.loads(json.dumps({"n": n, "batch_size": batch_size, **recipe}))
    if folder is not None:
        _claim(folder, recipe)
    batches = []
    with tqdm(total=n, desc="pairs", unit="pair", disable=not progress) as bar:
        for k, start in enumerate(range(0, n, batch_size)):
            size = min(batch_size, n - start)
            file = None if folder is None else folder / f"batch-{k:05d}.safetensors"
            batches.append(_batch(make, k, size, recipe, file))
            bar.update(size)
    return Pairs(*(_joined([getattr(b, name) for b in batches]) for name in ("x0", "eps", "cond")))


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Note the recipe in the folder; refuse a folder that has another."""
    note = folder / "pairs.json"
    if note.is_file():
        try:
            stored = json.loads(note.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{note} is damaged ({error}); remove it or its folder") from error
        other = [
            f"{name} is {recipe.get(name)!r} here and {stored.get(name)!r} there"
            for name in sorted({*recipe, *stored})
            if recipe.get(name) != stored.get(name)
        ]
        if other:
            raise ValueError(
                f"folder {folder} holds other pairs: {'; '.join(other)}. Give another folder, or "
                f"remove this one to start anew"
            )
    write_atomic(note, (json.dumps(recipe, indent=2) + "\n").encode())


def _batch(
    make: Callable[[int, int], Pairs], k: int, size: int, recipe: dict[str, Any], file: Path | None
) -> Pairs:
    """Batch k: read, if it is there and whole; else made, and kept."""
    if file is None:
        return make(k, size)
    key = hashlib.sha256(json.dumps([recipe, k], sort_keys=True).encode()).hexdigest()[:16]
    pairs = _read(file, key)
    if pairs is None:
        pairs = make(k, size)
        _write(file, pairs, key)
    return pairs


def _write(file: Path, pairs: Pairs, key: str) -> None:
    from safetensors.torch import save

    tensors = {"x0": pairs.x0, "eps": pairs.eps}
    if isinstance(pairs.cond, tuple):
        tensors |= {f"cond.{i}": part for i, part in enumerate(pairs.cond)}
    elif pairs.cond is not None:
        tensors["cond"] = pairs.cond
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(file, save(tensors, {"recipe": key, "content": tensor_hash(tensors)}))


def _read(file: Path, key: str) -> Pairs | None:
    """The pairs of a file; None if it is missing, damaged or of another recipe."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            note = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        return None
    # The hash finds what the disk or a copy has damaged inside the tensors.
    if note.get("recipe") != key or note.get("content") != tensor_hash(tensors):
        return None
    parts = sorted((name for name in tensors if name.startswith("cond.")), key=_number)
    cond = tuple(tensors[name] for name in parts) if parts else tensors.get("cond")
    return Pairs(tensors["x0"], tensors["eps"], cond)


def _number(name: str) -> int:
    return int(name.removeprefix("cond."))


def _joined(parts: list[Any]) -> Any:
    """Conditions, or tensors, one batch after the other."""
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(same)) for same in zip(*parts, strict=True))
    return None if parts[0] is None else torch.cat(parts)


def weights_hash(model: nn.Module) -> str:
    """Class of a model and a short SHA-256 of its weights and buffers."""
    return f"{type(model).__name__} {tensor_hash(model.state_dict())}"


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """A short SHA-256 of tensors: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
