"""The exact answer to an inverse problem, for data from a mixture of Gaussians.

Given linear measurements a mixture stays a mixture: every component is conditioned by itself, and
its weight is multiplied by how well it explains the measurement. Against these answers the course
measures inpainting and guidance.
"""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from course_lib.applications.inputs import check_mask
from course_lib.denoisers import GaussianMixture

__all__ = ["conditional", "posterior"]


def conditional(mixture: GaussianMixture, known: Tensor, mask: Tensor) -> GaussianMixture:
    """p(x_unknown | x_known), a mixture over the unknown coordinates alone, in their order.

    Args:
        mixture: p(x), of D coordinates.
        known: the point, shape (D,); only its known coordinates count.
        mask: 1 = known, shape (D,), with at least one 0.

    Returns:
        A mixture of the same path, with D - (number of known coordinates) coordinates.

    Raises:
        TypeError: if the mask is no tensor.
        ValueError: if shapes do not fit, the mask is not 0/1, or nothing is unknown.
    """
    D = mixture.means.shape[1]
    keep = check_mask(mask, (D,))
    if known.shape != (D,) or bool(keep.all()):
        raise ValueError(
            f"known must have shape ({D},) with a coordinate that is unknown; got "
            f"{tuple(known.shape)}, mask {mask.tolist()}"
        )
    select = torch.eye(D).to(mixture.means)
    joint = _conditioned(mixture, select[keep], known.to(mixture.means)[keep], 0.0)
    unknown = select[~keep]
    weights, means, covs = joint
    return GaussianMixture(means @ unknown.T, unknown @ covs @ unknown.T, weights, mixture.path)


def posterior(
    mixture: GaussianMixture, matrix: Tensor, y: Tensor, noise_std: float
) -> GaussianMixture:
    """p(x_0 | y) for y = A x_0 + noise_std z, a mixture over all coordinates.

    Args:
        mixture: p(x_0), of D coordinates.
        matrix: A, shape (M, D).
        y: one measurement, shape (M,).
        noise_std: standard deviation of the noise, above 0 (:func:`conditional` needs none).

    Raises:
        ValueError: if shapes do not fit, or ``noise_std`` is not above 0.
    """
    D = mixture.means.shape[1]
    if matrix.ndim != 2 or matrix.shape[1] != D or y.shape != matrix.shape[:1]:
        raise ValueError(
            f"matrix must have shape (M, {D}) and y (M,); got {tuple(matrix.shape)} and "
            f"{tuple(y.shape)}"
        )
    if not noise_std > 0:
        raise ValueError(f"noise_std must be above 0; got {noise_std}")
    weights, means, covs = _conditioned(mixture, matrix.to(mixture.means), y, noise_std)
    return GaussianMixture(means, covs, weights, mixture.path)


def _conditioned(
    mixture: GaussianMixture, matrix: Tensor, y: Tensor, noise_std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K',), means (K', D) and covariances of the components that are left.

    Kalman's update: gain G = C A^T S^-1 with S = A C A^T + noise_std^2 I, mean m + G (y - A m),
    covariance C - G A C; the weight is multiplied by N(y; A m, S).
    """
    axes, variances = mixture._axes, mixture._variances
    covs = torch.einsum("kde,ke,kfe->kdf", axes, variances, axes)
    S = matrix @ covs @ matrix.T + noise_std**2 * torch.eye(len(matrix)).to(covs)
    gain = torch.linalg.solve(S, matrix @ covs).mT  # (K, D, M)
    missing = y.to(covs) - mixture.means @ matrix.T
    means = mixture.means + torch.einsum("kdm,km->kd", gain, missing)
    left = covs - gain @ matrix @ covs
    evidence = MultivariateNormal(torch.zeros_like(missing), S).log_prob(missing)
    weights = (mixture._log_weights + evidence).softmax(0)
    alive = weights > 0  # those that explain y so badly that their weight is 0 in floating point
    return weights[alive], means[alive], (left[alive] + left[alive].mT) / 2
