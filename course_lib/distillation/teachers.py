"""The model that is distilled: asked without gradients, and never changed but in mode and place."""

from __future__ import annotations

import hashlib

from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser

__all__ = ["asked", "described"]


def asked(teacher: Denoiser | None, x: Tensor) -> Denoiser:
    """The teacher in evaluation mode, where ``x`` is.

    Raises:
        ValueError: if there is none.
    """
    if teacher is None:
        raise ValueError("teacher must be a Denoiser; got None: --teacher NAME on the command line")
    return teacher.to(x.device).eval()


def described(teacher: Denoiser | None) -> str:
    """Class, scale and a short SHA-256 of the weights: a run with another one is another run.

    Raises:
        TypeError: if ``teacher`` is neither None nor a Denoiser.
    """
    if teacher is None:
        return "none"
    check_denoiser(teacher)
    digest = hashlib.sha256()
    for name, weight in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    scale = getattr(teacher, "scale", 1)  # guidance has one; a function of time has only a name
    scale = getattr(scale, "__qualname__", scale)
    return f"{type(teacher).__name__} {scale} {digest.hexdigest()[:16]}"
