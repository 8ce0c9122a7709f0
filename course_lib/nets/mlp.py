"""A network for points."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from course_lib.nets.embeddings import (
    Condition,
    ConditionedNet,
    ConditionEmbedding,
    check_inputs,
    zero_init,
)

__all__ = ["MLP"]


class MLP(ConditionedNet):
    """A residual perceptron whose features are scaled by time and class before each layer.

    The last layer starts at zero, hence so does the output.

    Args:
        dim: Dimension D of the points.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        num_classes: Number of classes, if points come with labels.
    """

    def __init__(
        self, dim: int, width: int = 128, depth: int = 3, *, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.dim, self.num_classes = dim, num_classes
        self.condition = ConditionEmbedding(width, num_classes=num_classes)
        self.inp = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)
        zero_init(self.out)

    def forward(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Map points to points.

        Args:
            x: Points, shape (B, D).
            t: Times in [0, 1], shape (B,).
            cond: Labels (B,) int64, `num_classes` meaning no label; None: no labels.

        Returns:
            Shape (B, D).

        Raises:
            ValueError: If the shape of `x`, `t` or `cond` does not fit.
        """
        check_inputs(x, t, self.dim)
        c, *_ = self.condition(t, cond)
        h = self.inp(x)
        for layer in self.layers:
            h = h + layer(silu(h * (1 + c)))
        return self.out(silu(h))
