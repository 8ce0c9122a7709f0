"""Which batch does step n see? A function of (seed, n), and of nothing else.

That one sentence is why a killed run can go on where it stopped and end with the same weights:
there is no iterator to rewind and no hidden state of a shuffler to restore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batches", "Data", "step_seed", "to_device"]

Data = Tensor | tuple[Tensor, Any] | Callable[..., Any]


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """Mix run seed, step and stream into 32 well-stirred bits.

    A plain sum would let seed 0 at step 1 see what seed 1 saw at step 0, and the CPU generator of
    torch reads only the lower 32 bits of a seed, so shifting one of them upwards would lose it.

    Args:
        seed: seed of the run, at least 0.
        step: number of the optimizer step, from 0.
        stream: one stream for each use (0: choice of the batch, 1: times and noise, 1 + r: dropout
            of process r, 1 + processes + r: what else it draws on its own).

    Returns:
        A seed in [0, 2**32).
    """
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1)[0])


class Batches:
    """Batches by number.

    Args:
        data: x0 of shape (N, ...); or a tuple (x0, cond) with cond a tensor (N, ...), None, or a
            tuple of such conditions; or a sampler, called as `data(n, generator=generator)`, that
            returns one of the two with N = n (endless data).
        batch_size: number of examples of a step, over all processes.
        seed: seed of the run.

    Raises:
        TypeError: data is none of these.
        ValueError: x0 is empty, or x0 and cond have different lengths.
    """

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        if not callable(data):
            _check(*_split(data))
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Any]:
        """Return the part of batch `step` that belongs to process `rank`.

        Args:
            step: number of the step, from 0.
            rank: number of this process.
            world_size: number of processes; together they see the batch that one would see alone.

        Returns:
            (x0, cond); cond is None where there is none.

        Raises:
            ValueError: the batch cannot be shared out evenly.
        """
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size must be divisible by the number of processes, {world_size}; "
                f"got {self.batch_size}"
            )
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        if callable(self.data):
            x0, cond = _split(self.data(self.batch_size, generator=generator))
            index = torch.arange(len(x0))
        else:
            x0, cond = _split(self.data)
            index = torch.randint(len(x0), (self.batch_size,), generator=generator)
        index = index[rank::world_size].to(x0.device)
        return x0[index], _take(cond, index)

    @property
    def description(self) -> str:
        """What must be the same for a run to go on: the shape of the data, and a hash of a few."""
        if callable(self.data):
            return "sampler"
        x0, _ = _split(self.data)
        few = x0[:: max(1, len(x0) // 16)].detach().cpu().double()
        return f"{tuple(x0.shape)} {hashlib.sha256(few.numpy().tobytes()).hexdigest()[:8]}"


def _split(data: Any) -> tuple[Tensor, Any]:
    x0, cond = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if not isinstance(x0, Tensor):
        raise TypeError(
            "data must be a tensor x0, a tuple (x0, cond) or a sampler called as "
            f"data(n, generator=generator); got {type(data).__name__} (torch.from_numpy makes "
            "tensors of arrays)"
        )
    return x0, cond


def _check(x0: Tensor, cond: Any) -> None:
    if x0.ndim == 0 or len(x0) == 0:
        raise ValueError(f"data must hold at least one example; x0 has shape {tuple(x0.shape)}")
    lengths = [len(part) for part in _parts(cond)]
    if any(length != len(x0) for length in lengths):
        raise ValueError(f"x0 has {len(x0)} examples, cond has {lengths}: they must agree")


def _parts(cond: Any) -> list[Any]:
    """The tensors of a condition, which may be None, a tensor, or a tuple of conditions."""
    if isinstance(cond, tuple):
        return [tensor for part in cond for tensor in _parts(part)]
    return [] if cond is None else [cond]


def _take(cond: Any, index: Tensor) -> Any:
    """Rows of a condition: of a tensor, or of each part of a tuple; None stays None."""
    if cond is None:
        return None
    if isinstance(cond, tuple):
        return tuple(_take(part, index) for part in cond)
    return cond[index]


def to_device(cond: Any, device: Any) -> Any:
    """A condition on another device: a tensor, or each part of a tuple; None stays None."""
    if isinstance(cond, tuple):
        return tuple(to_device(part, device) for part in cond)
    return cond if cond is None else cond.to(device)
