"""`diagnose`: the list of questions to ask of a model that draws badly, as one call."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.evaluation.diagnosis.conventions import check_use
from course_lib.evaluation.diagnosis.coverage import check_classes, check_coverage, check_labels
from course_lib.evaluation.diagnosis.drawn import (
    check_distribution,
    check_ends,
    check_memory,
    check_noise,
    check_seeds,
)
from course_lib.evaluation.diagnosis.inputs import check_inputs, check_model_scale
from course_lib.evaluation.diagnosis.loss import check_history, check_level, check_weights
from course_lib.evaluation.diagnosis.probe import Probe
from course_lib.evaluation.diagnosis.report import Finding, Report
from course_lib.samplers.api import Solver, find_solver

__all__ = ["diagnose"]

LEAST = 16  # of which two clusters of eight and a few neighbours can still be told


def diagnose(
    denoiser: Denoiser,
    data: Tensor | tuple[Tensor, Tensor],
    history: Tensor | Sequence[float] | None = None,
    *,
    n: int = 500,
    solver: str | Solver = "dpm_solver_pp_2m",
    steps: int = 20,
    seed: int = 0,
    polish: int = 100,
) -> Report:
    """Ask a trained model what is wrong with it.

    Each check compares a number with what it would be if all were well: with the same number of
    the data, with a reference whose loss is known, or with another way to use the same network.
    Faults of use come first (scale of the data, path, direction of time); where one is found, the
    checks after it look at the model with that put right, so that they find what else there is.

    The faults that ``Report.causes`` may name are: wrong data scale, swapped time, schedule
    mismatch, wrong prediction target, samples off the data, collapsed modes, thin modes, labels not
    followed, too high learning rate, trained too short, not learned, missing EMA, noise left in
    samples, memorised data, another distribution, seeds disagree, not finite.

    Args:
        denoiser: the model, trained to denoise, with noise that is independent of the data. It is
            left as it is. For one that takes labels, give them with the data.
        data: what it was trained on, x0 of shape (N, ...) with N >= 16, or (x0, labels) with labels
            (N,) int64. Memorised data are found only among these.
        history: loss of each training step; by default ``denoiser.losses``, which ``fit`` leaves.
        n: number of samples drawn, at least 32.
        solver: with which solver they are drawn.
        steps: in how many steps.
        seed: decides all that is random.
        polish: number of small training steps that a copy of the model takes, to see whether its
            weights were at rest; 0 leaves that check out. They cost most of the time.

    Returns:
        The findings; ``print`` them in a terminal, or show them in a notebook.

    Raises:
        TypeError: if ``denoiser`` is a bare network, or data, labels or history are of wrong types.
        ValueError: if data are too few, constant or not finite, shapes do not fit, an option is out
            of range, or the solver is unknown.
    """
    check_denoiser(denoiser)
    x, labels = _data(data)
    _check_options(n, steps, polish)
    model = copy.deepcopy(denoiser).eval()
    reference = next(model.parameters(), next(model.buffers(), torch.empty(0)))
    x = x.detach().to(reference)
    labels = None if labels is None else labels.to(x.device)
    losses = _history(getattr(denoiser, "losses", None) if history is None else history)
    takes = labels is not None and _takes_labels(model, labels)
    probe = Probe(model, x, labels, takes, losses, n, find_solver(solver), steps, seed, polish)
    return Report(tuple(_findings(probe)))


def _findings(probe: Probe) -> list[Finding]:
    """All checks, each on what the ones before left: faults of use are put right."""
    found = [check_inputs(probe)]
    if _not_finite(probe) is None:
        size, use, probe = _put_right(probe)
        found += [size, use]
    if (broken := _not_finite(probe)) is not None:
        return [*found, check_history(probe), broken]
    ends = check_ends(probe)
    off = ends.verdict == "bad"
    coverage, covered = (_skipped("coverage"), probe) if off else check_coverage(probe)
    history = check_history(probe)
    weights = check_weights(covered, history)
    level = check_level(covered, history, weights)
    classes, labels = (
        _skipped(check.__name__.removeprefix("check_")) if off else check(probe)
        for check in (check_classes, check_labels)
    )
    distribution = check_distribution(probe, off or coverage.verdict != "ok")
    drawn = [ends, coverage, classes, labels, check_noise(probe), distribution]
    if level.verdict == "bad":
        drawn = [_consequence(finding, level) for finding in drawn]
    return [*found, history, level, weights, *drawn, check_memory(probe), check_seeds(probe)]


def _put_right(probe: Probe) -> tuple[Finding, Finding, Probe]:
    """Size of samples, use of the network, and the probe without the faults found in them.

    A wrong use makes samples of a wrong size, and a wrong size makes other uses look better. Of the
    two that counts which explains the data best; then the other is asked again.
    """
    use, reused, error = check_use(probe)
    size, rescaled = check_model_scale(probe, error)
    if size.verdict == "bad":
        use, reused, _ = check_use(rescaled)
    return size, use, reused


def _skipped(check: str) -> Finding:
    return Finding(check, "skipped", "the samples are not where the data are", "", "see ends")


def _consequence(finding: Finding, of: Finding) -> Finding:
    """A model that has not learned draws badly in every way; that names no other fault."""
    return replace(finding, cause="", advice=f"see {of.check}") if finding.cause else finding


def _not_finite(probe: Probe) -> Finding | None:
    """A finding if samples are not finite: then nothing else can be measured."""
    bad = int((~torch.isfinite(probe.samples)).flatten(1).any(1).sum())
    if not bad:
        return None
    said = f"{bad} of {probe.n} samples hold NaN or infinity"
    return Finding("samples", "bad", said, "not finite", "lower the learning rate; look for NaN")


def _data(data: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    x, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"data must be a floating-point tensor, or (x0, labels); got {got}")
    if x.ndim < 2 or len(x) < LEAST:
        raise ValueError(f"data must have shape (N, ...), N >= {LEAST}; got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("data must be finite; they hold NaN or infinity")
    if not float((x - x.mean(0)).abs().max()) > 0:
        raise ValueError(f"data must differ from each other; all {len(x)} are the same")
    if labels is not None:
        _check_labels(labels, len(x))
    return x, labels


def _check_labels(labels: Tensor, count: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor; got {got}")
    if labels.shape != (count,) or int(labels.min()) < 0:
        raise ValueError(
            f"labels must have shape ({count},), each at least 0; got {tuple(labels.shape)}, "
            f"least {int(labels.min()) if labels.numel() else 'none'}"
        )


def _check_options(n: int, steps: int, polish: int) -> None:
    for name, value, least in (("n", n, 32), ("steps", steps, 1), ("polish", polish, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


def _history(losses: Tensor | Sequence[float] | None) -> Tensor | None:
    """The losses as numbers of shape (S,)."""
    if losses is None:
        return None
    try:
        values = torch.as_tensor(losses, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"history must be losses, one number a step; got {type(losses).__name__}"
        ) from None
    if values.ndim != 1 or len(values) < LEAST:
        raise ValueError(
            f"history must have shape (S,), S >= {LEAST} steps; got {tuple(values.shape)}"
        )
    return values


def _takes_labels(denoiser: Denoiser, labels: Tensor) -> bool:
    """Whether the model knows a label that means none, as all of the course do that take labels."""
    try:
        denoiser.null_condition(labels[:1])
    except ValueError:
        return False
    return True
