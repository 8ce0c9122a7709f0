"""The two denoisers between which every model's loss on its data lies: straight line and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.paths import Face, Path, expand

__all__ = ["LinearDenoiser", "Memoriser"]


class LinearDenoiser(Denoiser):
    """The best denoiser that is linear in x_t: Wiener's filter, exact for Gaussian data.

    Args:
        x: data, shape (N, ...). With fewer than ten points for each dimension their covariance is
            mostly chance, and each dimension is taken alone.
        path: the path on which x_t lies.
    """

    predicts: Face = "data"

    def __init__(self, x: Tensor, path: Path):
        super().__init__()
        flat = x.double().flatten(1)
        self.path, self.mean = path, flat.mean(0)
        centred = flat - self.mean
        if len(flat) < 10 * flat.shape[1]:
            self.variances, self.axes = centred.square().mean(0), None
        else:
            self.variances, self.axes = torch.linalg.eigh(centred.T @ centred / len(flat))

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """mean + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mean), shape (B, ...)."""
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        rest = xt.flatten(1) - alpha * self.mean
        rest = rest if self.axes is None else rest @ self.axes
        variances = self.variances.clamp(min=0)
        rest = rest * alpha * variances / (alpha**2 * variances + sigma**2)
        rest = rest if self.axes is None else rest @ self.axes.T
        return (self.mean + rest).reshape(xt.shape)


class Memoriser(Denoiser):
    """The exact minimiser of the loss on these points: the posterior mean over them.

    No model has a lower expected loss on its own training data (Karras et al., 2022, appendix
    B.3); its samples are the training data.

    Args:
        x: data, shape (N, ...).
        path: the path on which x_t lies.
    """

    predicts: Face = "data"

    def __init__(self, x: Tensor, path: Path):
        super().__init__()
        self.path, self.x = path, x.double().flatten(1)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """sum_i w_i x_i with w_i proportional to exp(-|x_t - alpha x_i|^2 / (2 sigma^2))."""
        flat, alpha = xt.flatten(1), expand(self.path.alpha(t), xt[:, :1].flatten(1))
        squared = (alpha * self.x.square().sum(1) - 2 * flat @ self.x.T) * alpha  # less |x_t|^2
        weights = torch.softmax(-squared / (2 * self.path.sigma(t)[:, None] ** 2), dim=1)
        return (weights @ self.x).reshape(xt.shape)
