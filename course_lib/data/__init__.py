"""Data: points in the plane with exact densities, handwritten digits, and latents of images."""

from course_lib.data.digits import digits
from course_lib.data.latents import LatentsInfo, latents, latents_info
from course_lib.data.mnist import mnist
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
    "TOYS",
    "LatentsInfo",
    "Toy",
    "checkerboard",
    "checkerboard_log_prob",
    "digits",
    "eight_gaussians",
    "eight_gaussians_labels",
    "eight_gaussians_log_prob",
    "eight_gaussians_parameters",
    "latents",
    "latents_info",
    "mnist",
    "pinwheel",
    "pinwheel_log_prob",
    "s_curve",
    "spirals",
    "toy",
    "two_moons",
]
