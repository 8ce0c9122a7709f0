"""Are samples where the data are, clean, new, and the same whatever the seed?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course_lib.evaluation.diagnosis.probe import Probe, z_score
from course_lib.evaluation.diagnosis.report import Finding
from course_lib.transport import sliced_wasserstein2
from course_lib.transport.wasserstein import squared_distances

__all__ = [
    "check_distribution",
    "check_ends",
    "check_memory",
    "check_noise",
    "check_seeds",
    "nearest",
]

CHUNK = 256
FAR_RATIO = 1.5  # good models of few digits reach 1.2: their samples are new, data have siblings
FAR = 0.05  # and this of the data's radius; trained models stay under .02, however dense the data
CLOSE = 1 / 3  # memorised if the nearest is 3 times nearer than the second (Yoon et al., 2023)
COPIES = 0.2  # part of the samples beyond that of the data; below, few copies can do little harm
NEAR = 0.5  # times the usual distance; blurred or narrow samples are nearer too, by a tenth or two
RARE = 1e-3  # chance of a false alarm
LEVEL = 10.0  # alpha std / sigma: noise of a tenth of the data is seen, that of data removed little
NOISE = 0.05  # of the data's deviation; in images in [-1, 1] that is about 5 grey levels of 255
CHANCE = 4.0  # standard errors, p = 3e-5
APART = 2.0  # times the distance of two parts of the data: what a trained model may be off
SPREAD = 4.0  # standard deviations of that distance


def nearest(x: Tensor, data: Tensor, own: bool = False) -> tuple[Tensor, Tensor]:
    """Distances (M, 2) to the two nearest of the data, and which is nearest, (M,).

    Args:
        x: points, shape (M, ...).
        data: shape (N, ...), N >= 3.
        own: x are of the data: leave out the nearest, the point itself.
    """
    flat, every, skip = x.double().flatten(1), data.double().flatten(1), int(own)
    found = [
        squared_distances(rows, every).topk(2 + skip, largest=False) for rows in flat.split(CHUNK)
    ]
    distances = torch.cat([f.values for f in found])[:, skip:].sqrt()
    return distances, torch.cat([f.indices for f in found])[:, skip]


def _both(probe: Probe) -> tuple[Tensor, Tensor]:
    """Distances of samples, and of data without themselves, to the two nearest of the data."""
    away, _ = nearest(probe.samples, probe.x)
    usual, _ = nearest(probe.draws(min(4 * probe.n, len(probe.x)), stream=6).x0, probe.x, own=True)
    return away, usual


def check_ends(probe: Probe) -> Finding:
    """Do trajectories end where data are? Distance to the nearest, against that of data."""
    away, usual = (float(d[:, 0].mean()) for d in _both(probe))
    radius = probe.std * math.sqrt(probe.x[0].numel())
    further = (away - usual) / radius
    said = (
        f"samples are {away:.3g} from the nearest of the data, data {usual:.3g} from each other: "
        f"further by {max(further, 0):.1%} of the data's radius"
    )
    if further > FAR and away > FAR_RATIO * usual:
        advice = "a loss that is not low enough, or too few or too coarse steps"
        return Finding("ends", "bad", said, "samples off the data", advice)
    return Finding("ends", "ok", said)


def check_noise(probe: Probe) -> Finding:
    """What one more denoising step removes from samples, against what it removes from data."""
    path = probe.denoiser.path
    t = path.t_of_lambda(torch.tensor([math.log(LEVEL / probe.std)], dtype=torch.float64))
    t = path.snap(t.clamp(1e-3, 1)).to(probe.x)
    alpha = path.alpha(t)

    def removed(x: Tensor, cond: Tensor | None) -> Tensor:
        with torch.no_grad():
            clean = probe.denoiser.data(alpha * x, t.expand(len(x)), cond)
        return (clean - x).square().flatten(1).mean(1).double().cpu() / probe.std**2

    draws = probe.draws(probe.n, stream=7)
    samples, data = removed(probe.samples, probe.asked), removed(draws.x0, draws.cond)
    left = math.sqrt(max(float(samples.mean() - data.mean()), 0))
    said = (
        f"one more step at a small time moves samples by {float(samples.mean().sqrt()):.3f} std, "
        f"data by {float(data.mean().sqrt()):.3f}: noise of {left:.3f} std"
    )
    if left > NOISE and z_score(samples - data.mean()) > CHANCE:
        advice = "end at t = 0, with the data prediction last; more steps; no noise in the last"
        return Finding("noise left", "bad", said, "noise left in samples", advice)
    return Finding("noise left", "ok", said)


def check_memory(probe: Probe) -> Finding:
    """Are samples copies of the data? Two signs, each beside what the data themselves show.

    How often the nearest is by far the nearest: in D dimensions that is so for one in 3^D of new
    points among many. And how near it is (Meehan et al., 2020): a copy is much nearer than data.
    """
    from scipy.stats import binom

    away, usual = _both(probe)
    copies, alike = ((d[:, 0] < CLOSE * d[:, 1]).double() for d in (away, usual))
    share, chance = float(copies.mean()), max(float(alike.mean()), 1 / len(alike))
    near = float(away[:, 0].median() / usual[:, 0].median().clamp(min=1e-30))
    said = (
        f"{share:.1%} of the samples are 3 times nearer to one of the data than to any other, of "
        f"the data {float(alike.mean()):.1%}; they are {near:.2f} times as far from it"
    )
    often = float(binom.sf(int(copies.sum()) - 1, len(copies), chance)) < RARE
    if (share - chance > COPIES and often) or near < NEAR:
        advice = "more data, a smaller network, fewer steps, augmentation; remove duplicates"
        return Finding("memory", "bad", said, "memorised data", advice)
    return Finding("memory", "ok", said)


def check_distribution(probe: Probe, explained: bool) -> Finding:
    """Samples against data by optimal transport, beside what two parts of the data differ by.

    Args:
        probe: the model with its data.
        explained: whether an earlier finding already says why they differ.
    """
    order = torch.randperm(len(probe.samples), generator=probe.generator(8))
    samples = probe.samples[order.to(probe.samples.device)]
    gap, floor, spread = _distances(samples, probe.draws(probe.n, stream=9).x0, probe)
    said = f"sliced W2 to the data {gap:.3g}; between parts of the data {floor:.3g} +- {spread:.2g}"
    if gap < max(APART * floor, floor + SPREAD * spread):
        return Finding("distribution", "ok", said)
    if explained:
        return Finding("distribution", "look", f"{said}; follows from a row above")
    advice = "compare means and deviations; less guidance; more steps; a larger network"
    return Finding("distribution", "look", said, "another distribution", advice)


def check_seeds(probe: Probe) -> Finding:
    """Samples of two seeds against each other, as samples against data above."""
    half = probe.n // 2
    one, two = probe.samples[:half], probe.samples[half:]
    gap, floor, spread = _distances(one, two, probe)
    said = (
        f"sliced W2 of two seeds {gap:.3g}, of parts of the data {floor:.3g} +- {spread:.2g}; "
        f"means {float(one.mean()):.3g} and {float(two.mean()):.3g}"
    )
    if gap < max(APART * floor, floor + SPREAD * spread):
        return Finding("seeds", "ok", said)
    advice = "draw more; look for state in the model: dropout, batch norm, a global seed"
    return Finding("seeds", "look", said, "seeds disagree", advice)


def _distances(a: Tensor, b: Tensor, probe: Probe) -> tuple[float, float, float]:
    """Sliced W2 of two sets; of pairs of parts of the data that large, the mean and deviation."""
    m = min(len(a), len(b), len(probe.x) // 2)
    floor, generator = [], probe.generator(5)
    for _ in range(10):
        index = torch.randperm(len(probe.x), generator=generator)[: 2 * m].to(probe.x.device)
        one, two = probe.x[index].split(m)
        floor.append(sliced_wasserstein2(one, two, 64))
    values = torch.tensor(floor)
    return sliced_wasserstein2(a[:m], b[:m], 64), float(values.mean()), float(values.std())
