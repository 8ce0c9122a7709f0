"""Paths of every kind, and a mixture whose every answer is known."""

import torch

from course_lib import VE, VP, CosineVP, DiscreteVP, GaussianMixture, Linear, linear_betas

PATHS = {
    "VP": VP(),
    "CosineVP": CosineVP(),
    "VE": VE(0.01, 20.0),
    "Linear": Linear(),
    "DiscreteVP": DiscreteVP(linear_betas(1000)),
}


def mixture_2d(path):
    """Three unlike components in two dimensions, float64."""
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
    roots = torch.tensor(
        [[[0.3, 0.0], [0.1, 0.2]], [[0.2, 0.1], [0.0, 0.4]], [[0.5, 0.0], [0.0, 0.1]]],
        dtype=torch.float64,
    )
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixture(means, roots @ roots.mT, weights, path)


def class_mixture(path):
    """Five components in three classes, of which one has three, one and one; float64."""
    means = torch.tensor(
        [[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5], [1.0, 1.5], [-1.5, -1.0]], dtype=torch.float64
    )
    roots = torch.tensor(
        [[0.3, 0.0, 0.1, 0.2], [0.2, 0.1, 0.0, 0.4], [0.5, 0.0, 0.0, 0.1], [0.4, 0.2, 0.0, 0.3],
         [0.2, 0.0, 0.2, 0.3]], dtype=torch.float64
    ).reshape(5, 2, 2)  # fmt: skip
    weights = torch.tensor([0.3, 0.2, 0.15, 0.25, 0.1], dtype=torch.float64)
    classes = torch.tensor([0, 2, 0, 1, 0])
    return GaussianMixture(means, roots @ roots.mT, weights, path, classes)
