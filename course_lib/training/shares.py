"""One batch on several processes: the noise of an example must not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SharedDraws"]

IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    torch.rand: Tensor.uniform_,
    torch.randn: Tensor.normal_,
}


class SharedDraws(TorchFunctionMode):
    """Within this context, each process draws for the whole batch and keeps its own rows.

    An objective sees rows rank, rank + world_size, ... of the batch, and draws times and noise for
    them from the step's generator. Here such a draw is made for all rows, from a generator that is
    in the same state in every process, and cut. So example i gets the noise that it would get if
    one process did it all, and the objective need not know.

    This holds for `torch.rand`, `torch.randn` and filling in place (`normal_`, `uniform_`, ...),
    where the first size is the number of own rows. Draws of other sizes are the same in every
    process. Other functions (`torch.randint`, `torch.multinomial`, ...) draw from a generator of
    the process's own: random, but not what one process alone would draw.

    Args:
        generator: the step's generator; in the same state in every process.
        own: another one, in another state in every process.
        rows: number of own rows.
        rank: number of this process.
        world_size: number of processes, each with as many rows.
    """

    def __init__(
        self,
        generator: torch.Generator,
        own: torch.Generator,
        rows: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__()
        self.generator, self.own, self.rows = generator, own, rows
        self.mine = slice(rank, None, world_size)
        self.total = rows * world_size

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if func in IN_PLACE:
            del kwargs["generator"]
            return self._fill(torch.empty(*args, **kwargs), IN_PLACE[func])
        if func.__name__.endswith("_") and not any(isinstance(a, Tensor) for a in args[1:]):
            return self._fill(args[0], func, *args[1:], **kwargs)
        return func(*args, **{**kwargs, "generator": self.own})

    def _fill(self, out: Tensor, fill: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        kwargs["generator"] = self.generator
        if out.shape[:1] != (self.rows,):
            return fill(out, *args, **kwargs)
        whole = out.new_empty((self.total, *out.shape[1:]))
        return out.copy_(fill(whole, *args, **kwargs)[self.mine])
