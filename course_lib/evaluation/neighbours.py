"""Are samples realistic, and are they diverse? Two numbers, by nearest neighbours."""

import torch
from torch import Tensor

from course_lib.transport.wasserstein import pair, squared_distances

__all__ = ["precision_recall"]

_CHUNK = 1024


def precision_recall(
    features_real: Tensor, features_fake: Tensor, k: int = 3
) -> tuple[float, float]:
    """Precision and recall of generated samples (Kynkaanniemi et al., 2019, equations 1 and 2).

    Around each point of a set stands a ball that reaches to its k-th nearest neighbour within the
    set; the balls together are an estimate of where the set lives. Precision is the part of the
    generated points inside the balls of the real ones (are they realistic?), recall the part of
    the real points inside the balls of the generated ones (is all of the data covered?).

    Both depend on N, M and k: compare at equal ones. Two samples of one distribution are below 1.
    Exact, in time N M and memory in proportion to N + M.

    Args:
        features_real: of real samples, shape (N, F), N > k; see :func:`digit_features`.
        features_fake: of generated ones, shape (M, F), M > k.
        k: which neighbour sets the radius, at least 1.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: if k is below 1, dimensions differ, or a set is too small or not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    real, fake = pair(features_real, features_fake, least=k + 1)
    real, fake = real.cpu(), fake.cpu()
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)
    covered = torch.zeros(len(real), dtype=torch.bool)
    realistic = 0
    for rows, reach in zip(fake.split(_CHUNK), reach_fake.split(_CHUNK), strict=True):
        distances = squared_distances(rows, real)
        realistic += int((distances <= reach_real).any(1).sum())
        covered |= (distances <= reach[:, None]).any(0)
    return realistic / len(fake), covered.double().mean().item()


def _reach(x: Tensor, k: int) -> Tensor:
    """Squared distance from each point to its k-th nearest neighbour; it is its own zeroth."""
    chunks = [squared_distances(rows, x).kthvalue(k + 1).values for rows in x.split(_CHUNK)]
    return torch.cat(chunks)
