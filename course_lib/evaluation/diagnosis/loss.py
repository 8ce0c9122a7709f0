"""Is the loss falling, is it near what can be reached, and do the weights stand still?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser
from course_lib.evaluation.diagnosis.probe import Draws, Probe, z_score
from course_lib.evaluation.diagnosis.references import LinearDenoiser, Memoriser
from course_lib.evaluation.diagnosis.report import Finding
from course_lib.objectives import denoising_loss, low_discrepancy_times
from course_lib.paths import Face

__all__ = ["check_history", "check_level", "check_weights"]

HIGH_RATE, SHORT, NOT_LEARNED = "too high learning rate", "trained too short", "not learned"
NO_EMA = "missing EMA"
LOWER_RATE = "divide the learning rate by 3 to 10; warm up; clip the gradient"
JUMP = 3.0  # a batch of 32 scatters by 18 %: no run of batches triples the start while it learns
SPIKES = 1.5  # mean over median; 1.00 to 1.03 where training is stable, 2.6 to 34 where it is not
CHANCE = 4.0  # standard errors, p = 3e-5
STILL_FALLING = 0.03  # the part of the whole fall that may be left to the last sixth of the steps
POLISH_RATE = 3e-4  # moves a weight by .02 in 100 steps: too little to learn, enough to settle
POLISH_GAIN = 0.01  # of the loss; trained averages gave at most .006, last weights .014 and more
CLEARLY = 0.5  # of the way to memory: more than chance, where few large errors hide the rest
AT_ONCE = 0.6  # the part of the gain that a quarter of the steps bring; steady learning brings half


def check_history(probe: Probe) -> Finding:
    """Did the loss fall, without explosions, and has it come to rest?"""
    if probe.history is None:
        advice = "give history=losses, one number a step"
        return Finding("history of loss", "skipped", "no losses given", "", advice)
    losses = probe.history.double()
    count = len(losses)
    bad = int((~torch.isfinite(losses)).sum())
    if bad:
        said = f"{bad} of {count} losses are not finite"
        return Finding("history of loss", "bad", said, HIGH_RATE, LOWER_RATE)
    tenth = max(2, count // 10)
    first, early, late = float(losses[0]), losses[: max(2, count // 100)], losses[-tenth:]
    said = f"loss {first:.3g} at first, {float(late.mean()):.3g} over the last {tenth} steps"
    middles = losses.unfold(0, 5, 1).median(1).values  # one odd batch is no explosion
    top = int(middles.argmax())
    if float(middles[top]) > JUMP * first:
        said = f"{said}; {float(middles[top]):.3g} about step {top + 2}"
        return Finding("history of loss", "bad", said, HIGH_RATE, LOWER_RATE)
    second = losses[count // 2 :]
    if float(second.mean()) > SPIKES * float(second.median()):
        said = f"{said}; in the second half spikes make the mean {float(second.mean()):.3g}, where "
        said = f"{said}the median is {float(second.median()):.3g}"
        return Finding("history of loss", "bad", said, HIGH_RATE, LOWER_RATE)
    if not z_score(early.mean() - late) > CHANCE:
        advice = "try rates of 1e-5 to 1e-2; check that the optimizer has the parameters"
        return Finding("history of loss", "bad", f"{said}: it does not fall", NOT_LEARNED, advice)
    return _rest(losses, said)


def _rest(losses: Tensor, said: str) -> Finding:
    """Is the last third level? Its two halves are compared, against the whole fall."""
    sixth = max(2, len(losses) // 6)
    before, after = losses[-2 * sixth : -sixth], losses[-sixth:]
    left = float((before.mean() - after.mean()) / (losses[0] - after.mean()).clamp(min=1e-30))
    said = f"{said}; {max(left, 0):.1%} of its fall in the last sixth of the steps"
    if left > STILL_FALLING and _gap(before, after) > CHANCE:
        return Finding("history of loss", "look", said, SHORT, "more steps, or a higher rate")
    return Finding("history of loss", "ok", said)


def _gap(before: Tensor, after: Tensor) -> float:
    """By how many standard errors the mean of ``after`` is lower (Welch's t)."""
    error = before.var() / len(before) + after.var() / len(after)
    return float((before.mean() - after.mean()) / error.sqrt().clamp(min=1e-30))


def check_level(probe: Probe, history: Finding, weights: Finding) -> Finding:
    """The loss now, between that of the best linear denoiser and that of the memoriser."""
    draws, model = probe.draws(512, stream=1), probe.denoiser
    references = LinearDenoiser(probe.x, model.path), Memoriser(probe.x, model.path)
    own, linear, memory = (_losses(d, draws, _face(model)) for d in (model, *references))
    way = float((linear - own).mean() / (linear - memory).mean().clamp(min=1e-30))
    said = (
        f"loss {float(own.mean()):.3g}; best linear denoiser {float(linear.mean()):.3g}, "
        f"memory of the data {float(memory.mean()):.3g}: {way:.0%} of the way"
    )
    better = z_score(linear - own)
    if better > CHANCE or (better > 0 and way > CLEARLY):
        return Finding("level of loss", "ok", said)
    cause, advice = NOT_LEARNED, "a rate of 1e-4 to 1e-3, more steps, a larger network"
    for known in (weights, history):
        if known.cause in (HIGH_RATE, SHORT):
            cause, advice = known.cause, known.advice
    if better < -CHANCE or cause != NOT_LEARNED:
        return Finding("level of loss", "bad", said, cause, advice)
    said = f"{said}. No better than a line, which is right for Gaussian data alone"
    return Finding("level of loss", "look", said, "", advice)


def check_weights(probe: Probe, history: Finding) -> Finding:
    """Does a copy of the model gain at once from a few small, falling steps?

    The weights of a run at a constant rate wander about a minimum; their average, or a falling
    rate, takes them down into it (Karras et al., 2024, section 3). Then so do some 100 small steps.
    A model that is averaged, or whose rate fell, gains nothing from them.
    """
    trainable = any(p.requires_grad for p in probe.denoiser.parameters())
    if not trainable or probe.polish < 4:
        why = "no weights to train" if not trainable else f"polish = {probe.polish}"
        return Finding("rest of weights", "skipped", why)
    start, quarter, end = _polished(probe)
    gain, soon = (float((start - x).mean() / start.mean()) for x in (end, quarter))
    said = f"{probe.polish} small steps of a copy lower the loss by {max(gain, 0):.2%}"
    said = f"{said} ({max(soon, 0):.2%} in the first quarter of them)"
    if gain < POLISH_GAIN or z_score(start - end) < CHANCE:
        return Finding("rest of weights", "ok", said)
    if history.cause == SHORT or soon < AT_ONCE * gain:
        advice = "more steps; the loss was not yet at rest"
        return Finding("rest of weights", "look", said, SHORT, advice)
    advice = "average the weights (fit: ema=.999), or let the rate fall (lr_schedule='cosine')"
    return Finding("rest of weights", "bad", said, NO_EMA, advice)


@torch.enable_grad()
def _polished(probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
    """Losses on the same draws before, after a quarter of, and after all steps."""
    model, face = copy.deepcopy(probe.denoiser), _face(probe.denoiser)
    held = probe.draws(probe.count(2048), stream=1)
    losses = [_losses(model, held, face)]
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=POLISH_RATE, betas=(0.9, 0.99)
    )
    generator = probe.generator(4)
    for step in range(probe.polish):
        optimizer.param_groups[0]["lr"] = POLISH_RATE * (1 - step / probe.polish)
        batch = probe.draws(probe.count(192), stream=100 + step)
        loss = denoising_loss(
            model, batch.x0, batch.cond, t=_times(batch, generator), eps=batch.eps
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 == probe.polish // 4:
            losses.append(_losses(model, held, face))
    before, quarter, after = *losses, _losses(model, held, face)
    return before, quarter, after


def _times(draws: Draws, generator: torch.Generator) -> Tensor:
    """Times spread evenly over [.001, 1]; some targets are infinite at 0."""
    t = low_discrepancy_times(len(draws.x0), generator=generator)
    return t.clamp(min=1e-3).to(draws.x0)


def _face(denoiser: Denoiser) -> Face:
    """What to compare: the model's own prediction; for a score, infinite at 0, the noise."""
    return "noise" if denoiser.predicts == "score" else denoiser.predicts


@torch.no_grad()
def _losses(denoiser: Denoiser, draws: Draws, face: Face) -> Tensor:
    """Squared error of each draw, at times that are the same for all denoisers; (M,)."""
    exact = isinstance(denoiser, LinearDenoiser | Memoriser)
    x0, eps = (v.double() if exact else v for v in (draws.x0, draws.eps))
    times = _times(draws, torch.Generator().manual_seed(0))
    t = denoiser.path.snap(times).to(x0)
    xt = denoiser.path.sample(x0, t, eps)
    error = getattr(denoiser, face)(xt, t, draws.cond) - denoiser.path.target(x0, eps, t, face)
    return error.square().flatten(1).mean(1).double().cpu()
