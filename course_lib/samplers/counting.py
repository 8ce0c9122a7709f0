"""Count what a solver costs: the number of evaluations of the denoiser, "NFE" in the papers."""

from typing import Any

from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import Face

__all__ = ["CountEvaluations"]


class CountEvaluations(Denoiser):
    """The same denoiser, with a count of its evaluations.

    Whichever face is asked, one question is one evaluation of the wrapped denoiser, of any batch
    size. A guided denoiser asks its network once, with both branches in one batch of 2B.

    Args:
        denoiser: any Denoiser.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.path, self.predicts = denoiser, denoiser.path, denoiser.predicts
        self.count = 0

    def reset(self) -> None:
        """Count from zero again."""
        self.count = 0

    def encode_condition(self, cond: Any) -> Any:
        """As the wrapped denoiser encodes it."""
        return self.denoiser.encode_condition(cond)

    def null_condition(self, cond: Any) -> Any:
        """That of the wrapped denoiser."""
        return self.denoiser.null_condition(cond)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The wrapped denoiser's prediction, shape (B, ...)."""
        self.count += 1
        return self.denoiser.predict(xt, t, cond)

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.count += 1
        return getattr(self.denoiser, target)(xt, t, cond)
