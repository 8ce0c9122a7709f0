"""Data: points in the plane with exact densities, handwritten digits, photographs, and latents."""

from course_lib.data.attributes import ATTRIBUTES, Attributes, levels, measure, normalised, varied
from course_lib.data.captions import DIGITS, Wanted, captions, follows, understood
from course_lib.data.digits import digits
from course_lib.data.latents import LatentsInfo, latents, latents_info
from course_lib.data.mnist import mnist
from course_lib.data.photos import photographs
from course_lib.data.tokenizer import VOCABULARY, tokenize
from course_lib.data.toy import (
    TOYS,
    Toy,
    checkerboard,
    checkerboard_log_prob,
    eight_gaussians,
    eight_gaussians_labels,
    eight_gaussians_log_prob,
    eight_gaussians_parameters,
    pinwheel,
    pinwheel_log_prob,
    s_curve,
    spirals,
    toy,
    two_moons,
)

__all__ = [
    "ATTRIBUTES",
    "DIGITS",
    "TOYS",
    "VOCABULARY",
    "Attributes",
    "LatentsInfo",
    "Toy",
    "Wanted",
    "captions",
    "checkerboard",
    "checkerboard_log_prob",
    "digits",
    "eight_gaussians",
    "eight_gaussians_labels",
    "eight_gaussians_log_prob",
    "eight_gaussians_parameters",
    "follows",
    "latents",
    "latents_info",
    "levels",
    "measure",
    "mnist",
    "normalised",
    "photographs",
    "pinwheel",
    "pinwheel_log_prob",
    "s_curve",
    "spirals",
    "tokenize",
    "toy",
    "two_moons",
    "understood",
    "varied",
]
