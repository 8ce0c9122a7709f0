"""Weights split over processes (FSDP), for models whose training state does not fit into one.

This is the second generation of PyTorch's fully sharded data parallelism (Zhao et al., 2023):
every parameter is a tensor of which each process holds a part, and each block is put together only
while it computes. Clipping, Adam and the moving average then work as they are.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

__all__ = ["FSDP", "gathered", "shard"]


class FSDP(ModelParallelStrategy):
    """Lightning's strategy, with all processes for the data and whole checkpoints in one file."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Share the data among all processes, and cut no layer in two."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def shard(module: nn.Module, mesh: Any) -> None:
    """Split the parameters of a module in place: those of each block, then what is left.

    Args:
        module: a denoiser or another module; the members of its `nn.ModuleList`s are its blocks.
        mesh: the processes, a one-dimensional `DeviceMesh`.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for part in reversed([*module.modules()]):  # the inner ones first
        for block in part if isinstance(part, nn.ModuleList) else ():
            if not isinstance(block, nn.ModuleList):
                fully_shard(block, mesh=mesh)
    # Split again after each call, also without a backward pass: sampling must leave no trace.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(module, "predict")  # what a denoiser has in the place of `forward`


def gathered(module: nn.Module) -> dict[str, Tensor]:
    """State of a module that was split: whole tensors, in every process."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in module.state_dict().items()
    }
