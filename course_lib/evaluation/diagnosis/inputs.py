"""Are the data of the size that the model takes them to be?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course_lib.denoisers import NetDenoiser
from course_lib.evaluation.diagnosis.probe import Probe, data_errors, z_score
from course_lib.evaluation.diagnosis.report import Finding

__all__ = ["check_inputs", "check_model_scale"]

CAUSE = "wrong data scale"
INPUT_RATIO = 5.0  # layers are initialised for inputs of size 1; toys of std 3.5 train unscaled
SIGNAL_LEFT = 0.3  # alpha(1) std / sigma(1) = r costs KL r^2 / 2 = .05 nats a dimension
SIZE = math.log(1.25)  # sampling moves the std of 500 samples by 3 %, a blurred model's by 10 %
ALIKE = 0.01  # of the data's deviation: all samples are one
BETTER = 1.5  # how much better the data must be denoised at the samples' scale than at their own


def check_inputs(probe: Probe) -> Finding:
    """The range of images, the data against `data_std`, and whether the noise covers the data."""
    lo, hi = float(probe.x.min()), float(probe.x.max())
    seen = f"range {lo:.3g} to {hi:.3g}, mean {float(probe.mean):.3g}, std {probe.std:.3g}"
    to_unit = "scale images to [-1, 1]: x / 127.5 - 1 from bytes, 2 x - 1 from [0, 1]"
    image = probe.x.ndim == 4 and probe.x.shape[1] in (1, 3)
    if image and hi > 10:  # of images in [-1, 1] none is near; bytes reach 255
        return Finding("data", "bad", f"pixels in {seen}", CAUSE, to_unit)
    ratio = probe.std / probe.denoiser.data_std if isinstance(probe.denoiser, NetDenoiser) else 1.0
    if abs(math.log(ratio)) > math.log(INPUT_RATIO):
        said = f"{seen}: {ratio:.3g} times the model's data_std {probe.denoiser.data_std:.3g}"
        return Finding("data", "bad", said, CAUSE, "scale the data, or set data_std to their std")
    one = torch.ones(1, dtype=torch.float64)
    left = float(probe.denoiser.path.alpha(one) / probe.denoiser.path.sigma(one)) * probe.std
    if left > SIGNAL_LEFT:
        said = f"{seen}; at t = 1 the data still stand at {left:.2g} times the noise"
        return Finding("data", "bad", said, CAUSE, "scale the data down, or let the path go on")
    if image and lo >= 0:
        return Finding("data", "look", f"pixels are never negative: {seen}", CAUSE, to_unit)
    return Finding("data", "ok", seen)


def check_model_scale(probe: Probe, rival: float) -> tuple[Finding, Probe]:
    """Samples against data in size; and, if they differ, at which size the model denoises.

    Samples alone do not tell a wrong scale from a bad model. But a model that learned other units
    denoises the data, brought to the samples' mean and deviation, much better than the data.

    Args:
        probe: the model with its data.
        rival: the error that another use of the network brings on the data as they are.

    Returns:
        The finding, and the probe with the data in the units of the model.
    """
    drawn = probe.samples
    std = float((drawn - drawn.mean(0)).square().mean().sqrt())
    said = f"samples have std {std:.3g} and mean {float(drawn.mean()):.3g}, data {probe.std:.3g}"
    said += f" and {float(probe.mean):.3g}"
    moved = abs(float(drawn.mean() - probe.mean)) / probe.std
    factor = std / probe.std
    if factor < ALIKE:
        advice = "train longer; look for a target or a loss that is constant"
        return Finding("size of samples", "bad", said, "collapsed modes", advice), probe
    if abs(math.log(factor)) < SIZE and moved < SIZE:
        return Finding("size of samples", "ok", said), probe
    rescaled = probe.with_(x=(probe.x - probe.mean) * factor + drawn.mean())
    here = data_errors(probe.denoiser, probe.draws(probe.count(256)), probe.std)
    there = data_errors(probe.denoiser, rescaled.draws(probe.count(256)), rescaled.std)
    if not _better(here, there) or float(there.mean()) > rival:
        return Finding("size of samples", "look", said, "", "see the rows below"), probe
    said = (
        f"{said}. Data times {factor:.3g} are denoised with error {float(there.mean()):.3g} of "
        f"their variance, as they are with {float(here.mean()):.3g}. Rows below: the former"
    )
    advice = "give the data as in training (or undo that scaling after sampling)"
    return Finding("size of samples", "bad", said, CAUSE, advice), rescaled


def _better(here: Tensor, there: Tensor) -> bool:
    """Both by a factor, and (paired over the data) beyond 4 standard errors of chance."""
    return bool(here.mean() > BETTER * there.mean()) and z_score(here - there) > 4
