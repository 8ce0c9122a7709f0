"""Numbers that say how good a model or a sampler is; each is tested against a closed form."""

from course_lib.evaluation.diagnosis import Finding, Report, diagnose
from course_lib.evaluation.features import (
    class_agreement,
    digit_features,
    digit_logits,
    frechet_distance,
)
from course_lib.evaluation.metrics import mmd, nll
from course_lib.evaluation.neighbours import precision_recall
from course_lib.evaluation.prompts import (
    prompt_agreement,
    retrieval_recall,
    zero_shot_accuracy,
)
from course_lib.transport import (
    gaussian_wasserstein2,
    path_energy,
    sliced_wasserstein2,
    straightness,
    wasserstein2,
)

__all__ = [
    "Finding",
    "Report",
    "class_agreement",
    "diagnose",
    "digit_features",
    "digit_logits",
    "frechet_distance",
    "gaussian_wasserstein2",
    "mmd",
    "nll",
    "path_energy",
    "precision_recall",
    "prompt_agreement",
    "retrieval_recall",
    "sliced_wasserstein2",
    "straightness",
    "wasserstein2",
    "zero_shot_accuracy",
]
