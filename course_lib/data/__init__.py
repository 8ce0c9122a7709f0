"""Data: points in the plane with exact densities, and handwritten digits."""

from course_lib.data.digits import digits
from course_lib.data.mnist import mnist
from course_lib.data.toy import (
    TOYS,
    Toy,
    checkerboard,
    checkerboard_log_prob,
    eight_gaussians,
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
    "Toy",
    "checkerboard",
    "checkerboard_log_prob",
    "digits",
    "eight_gaussians",
    "eight_gaussians_log_prob",
    "eight_gaussians_parameters",
    "mnist",
    "pinwheel",
    "pinwheel_log_prob",
    "s_curve",
    "spirals",
    "toy",
    "two_moons",
]
