"""Numbers that say how good a model or a sampler is; each is tested against a closed form."""

from course_lib.evaluation.features import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
    gaussian_wasserstein2,
)
from course_lib.evaluation.metrics import (
    mmd,
    nll,
    sliced_wasserstein2,
    wasserstein2,
)
from course_lib.evaluation.neighbours import precision_recall
from course_lib.evaluation.trajectories import path_energy, straightness

__all__ = [
    "class_agreement",
    "digit_features",
    "digit_logits",
    "frechet_distance",
    "gaussian_wasserstein2",
    "mmd",
    "nll",
    "path_energy",
    "precision_recall",
    "sliced_wasserstein2",
    "straightness",
    "wasserstein2",
]
