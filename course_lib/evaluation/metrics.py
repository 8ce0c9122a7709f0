"""Maximum mean discrepancy between samples, and the likelihood of samples.

Both take samples of shape (N, ...) and return a plain number. The distances of optimal transport
are in :mod:`course_lib.transport`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_lib.transport.wasserstein import pair, squared_distances

__all__ = ["mmd", "nll"]


def mmd(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] = 1.0) -> float:
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel.

    ``MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y')`` with ``k(a, b) = exp(-|a-b|^2 / (2 h^2))``
    and without the diagonal terms (Gretton et al., 2012, equation 3). Several bandwidths h are
    averaged.

    Args:
        x: samples, shape (N, ...), N >= 2.
        y: samples, shape (M, ...), M >= 2.
        bandwidth: h, or several of them, in the units of ``x``.

    Returns:
        The unbiased estimate of MMD^2, at most 2; around zero, so also negative, when both
        samples come from one distribution.

    Raises:
        ValueError: if dimensions differ, a sample is too small or not finite, or a bandwidth is
            not positive.
    """
    widths = [bandwidth] if isinstance(bandwidth, int | float) else list(bandwidth)
    if not widths or min(widths) <= 0:
        raise ValueError(f"bandwidth must be positive, or several positive numbers; got {widths}")
    a, b = pair(x, y, least=2)

    def kernel_sum(p: Tensor, q: Tensor) -> Tensor:
        squared = squared_distances(p, q)
        return torch.stack([torch.exp(-squared / (2 * h**2)) for h in widths]).mean(0).sum()

    n, m = len(a), len(b)
    within_x = (kernel_sum(a, a) - n) / (n * (n - 1))  # k(x_i, x_i) = 1 on the diagonal
    within_y = (kernel_sum(b, b) - m) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel_sum(a, b) / (n * m))


def nll(log_prob: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 4096) -> float:
    """Mean negative log-likelihood of samples, in nats.

    Args:
        log_prob: log-density, (B, ...) -> (B,); for instance ``GaussianMixture.log_prob``.
        x: samples, shape (N, ...).
        batch_size: samples per call of ``log_prob``.

    Returns:
        The mean of -log p(x_i); at best the entropy of the data, to which KL(data || p) adds.

    Raises:
        ValueError: if ``x`` is empty, or ``log_prob`` does not return one number a sample.
    """
    if len(x) == 0:
        raise ValueError(f"x must hold at least one sample; got shape {tuple(x.shape)}")
    total = 0.0
    for batch in x.split(batch_size):
        with torch.no_grad():
            values = log_prob(batch)
        if values.shape != batch.shape[:1]:
            raise ValueError(
                f"log_prob must return shape (B,) = ({len(batch)},); got {tuple(values.shape)}"
            )
        total -= float(values.double().sum())
    return total / len(x)
