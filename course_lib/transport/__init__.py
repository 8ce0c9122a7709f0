"""Optimal transport: plans and distances, couplings for training, and reflow."""

from course_lib.transport.costs import PointCloud
from course_lib.transport.couplings import (
    MinibatchOT,
    SinkhornCoupling,
    chain,
    fixed_pairs,
    independent,
)
from course_lib.transport.gaussian import (
    EntropicGaussian,
    entropic_gaussian,
    gaussian_map,
    gaussian_wasserstein2,
)
from course_lib.transport.pairs import Pairs
from course_lib.transport.reflow import (
    ReflowTrainer,
    Round,
    one_step,
    one_step_loss,
    reflow_loss,
)
from course_lib.transport.sinkhorn import Plan, sinkhorn, sinkhorn_divergence
from course_lib.transport.trajectories import path_energy, straightness
from course_lib.transport.wasserstein import (
    optimal_permutation,
    sliced_wasserstein2,
    wasserstein2,
    wasserstein_1d,
)

__all__ = [
    "EntropicGaussian",
    "MinibatchOT",
    "Pairs",
    "Plan",
    "PointCloud",
    "ReflowTrainer",
    "Round",
    "SinkhornCoupling",
    "chain",
    "entropic_gaussian",
    "fixed_pairs",
    "gaussian_map",
    "gaussian_wasserstein2",
    "independent",
    "one_step",
    "one_step_loss",
    "optimal_permutation",
    "path_energy",
    "reflow_loss",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein2",
    "straightness",
    "wasserstein2",
    "wasserstein_1d",
]
