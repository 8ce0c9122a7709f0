"""Training: `fit`, on Lightning, and the recipes of the pretrained models."""

from course_lib.training.fit import fit

__all__ = ["fit"]
