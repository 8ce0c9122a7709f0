"""Few steps by training: consistency models, mean flows and progressive distillation."""

from course_lib.distillation.consistency import (
    T_MIN,
    ConsistencyDistillation,
    ConsistencyTraining,
    consistency,
    consistency_function,
    ddim_step,
    multistep,
    pseudo_huber,
    skip_out,
    squared_distance,
)
from course_lib.distillation.meanflow import (
    IntervalDenoiser,
    MeanFlowLoss,
    mean_flow,
    mean_flow_sample,
)
from course_lib.distillation.progressive import ProgressiveDistillation, ProgressiveLoss

__all__ = [
    "T_MIN",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "IntervalDenoiser",
    "MeanFlowLoss",
    "ProgressiveDistillation",
    "ProgressiveLoss",
    "consistency",
    "consistency_function",
    "ddim_step",
    "mean_flow",
    "mean_flow_sample",
    "multistep",
    "pseudo_huber",
    "skip_out",
    "squared_distance",
]
