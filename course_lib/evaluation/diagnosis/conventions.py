"""Is the network used as it was trained: its path, its prediction, the direction of its time?"""

from __future__ import annotations

import math

from torch import Tensor

from course_lib.denoisers import NetDenoiser
from course_lib.evaluation.diagnosis.probe import Probe, Use, errors_by_face, reaches, z_score
from course_lib.evaluation.diagnosis.report import Finding
from course_lib.paths import (
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    Face,
    Linear,
    Path,
    cosine_betas,
    linear_betas,
)

__all__ = ["check_use"]

FACES: tuple[Face, ...] = ("noise", "data", "v", "velocity")  # a score differs by its scale alone
GAIN = 1.05  # the error that another use must undercut; below it, it would not matter either
CHANCE = 4.0  # standard errors: p = 3e-5, times some 60 uses still 0.2 %
SWAP_ADVICE = "t = 0 is data and t = 1 noise here: tell the network t where it is told 1 - t"


def check_use(probe: Probe) -> tuple[Finding, Probe, float]:
    """Tries the network in every way in which it may have been trained; the best should be this.

    The answer of a network means nothing by itself. Used on the path, as the prediction and with
    the time of its training it denoises best, which needs no more than data and noise to measure.

    Returns:
        The finding, the probe with the model used in the best way, and its error, or infinity where
        that way is its own.
    """
    own = Use(probe.denoiser.path, probe.denoiser.predicts)
    found = _tried(probe, own)
    base = found.pop(own)
    best = min(found, key=lambda use: float(found[use].mean().nan_to_num(math.inf)))
    least = float(found[best].mean())
    said = f"error {float(base.mean()):.3g} as {_name(own)}, as it is used"
    if not float(base.mean()) > GAIN * least or not z_score(base - found[best]) > CHANCE:
        said = f"{said}; {least:.3g} in the best of {len(found)} others"
        return Finding("use", "ok", said), probe, math.inf
    said = f"{said}; {least:.3g} as {_name(best)}. Rows below: used like that"
    cause, advice = _cause(own, best)
    model = best.of(probe.denoiser)
    return Finding("use", "bad", said, cause, advice), probe.with_(denoiser=model), least


def _tried(probe: Probe, own: Use) -> dict[Use, Tensor]:
    """Errors of all ways to use a network, its own first; of another denoiser, of time alone."""
    network = isinstance(probe.denoiser, NetDenoiser)
    faces = (own.predicts, *(f for f in FACES if f != own.predicts)) if network else (own.predicts,)
    known = _paths() if network and reaches(own.path, probe.std) else []
    others = [p for p in known if str(p) != str(own.path) and reaches(p, probe.std)]
    draws = probe.draws(probe.count(256))
    found: dict[Use, Tensor] = {}
    for path in (own.path, *others):
        for swapped in (False, True):
            model = Use(path, own.predicts, swapped).of(probe.denoiser)
            errors = errors_by_face(model, faces, draws, probe.std)
            found |= {Use(path, face, swapped): e for face, e in errors.items()}
    return found


def _paths() -> list[Path]:
    discrete = (DiscreteVP(linear_betas(1000)), DiscreteVP(cosine_betas(1000)))
    return [Linear(), CosineVP(), VP(), VE(), *discrete]


def _name(use: Use) -> str:
    return f"{use.predicts} on {use.path}{' at time 1 - t' if use.swapped else ''}"


def _cause(own: Use, best: Use) -> tuple[str, str]:
    if best.swapped and not own.swapped:
        return "swapped time", SWAP_ADVICE
    if str(best.path) != str(own.path):
        return "schedule mismatch", f"use the path of training: NetDenoiser(net, {best.path}, ...)"
    return "wrong prediction target", f'NetDenoiser(net, path, "{best.predicts}")'
