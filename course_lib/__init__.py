"""From Noise to Data: the companion package of the course.

Everything in the course is built from three things: a path from data to noise
(:mod:`course_lib.paths`), a model of what was lost on the way
(:mod:`course_lib.denoisers`), and a solver that walks the path back
(:mod:`course_lib.samplers`).
"""

from course_lib.denoisers import Denoiser, GaussianMixture, NetDenoiser
from course_lib.guidance import ClassifierFreeGuidance, ClassifierGuidance, NegativePrompt
from course_lib.objectives import ConditionDropout, denoising_loss
from course_lib.paths import VE, VP, CosineVP, DiscreteVP, Linear, Path, cosine_betas, linear_betas
from course_lib.samplers import sample

__all__ = [
    "VE",
    "VP",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ConditionDropout",
    "CosineVP",
    "Denoiser",
    "DiscreteVP",
    "GaussianMixture",
    "Linear",
    "NegativePrompt",
    "NetDenoiser",
    "Path",
    "cosine_betas",
    "denoising_loss",
    "linear_betas",
    "sample",
]
__version__ = "0.1.0"
