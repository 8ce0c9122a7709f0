"""Is all of the data among the samples? By clusters of the data, and by classes."""

from __future__ import annotations

import torch
from torch import Tensor

from course_lib.evaluation.diagnosis.drawn import nearest
from course_lib.evaluation.diagnosis.probe import Probe
from course_lib.evaluation.diagnosis.report import Finding

__all__ = ["check_classes", "check_coverage", "check_labels"]

MOST = 16  # clusters; of 500 samples each then expects 31, and none by chance once in e^31
RARE = 1e-3  # chance of a false alarm, over all groups together
MISSING, THIN = 0.25, 0.5  # share among the samples over that in the data
FOLLOWED = 0.75  # how often a label is followed, over how often neighbours of data share theirs
ADVICE = "are they in the training data, and as often? more steps; less guidance; larger batches"


def check_coverage(probe: Probe) -> tuple[Finding, Probe]:
    """Shares of clusters among samples and data.

    Returns:
        The finding, and the probe with the data of the clusters that are not missing.
    """
    groups, drawn = _clusters(probe)
    finding, missing = _compared("coverage", "cluster", groups, drawn, _places(probe.x, groups))
    if not missing:
        return finding, probe
    kept = ~torch.isin(groups, torch.tensor(missing)).to(probe.x.device)
    labels = None if probe.labels is None else probe.labels[kept]
    return finding, probe.with_(x=probe.x[kept], labels=labels)


def check_classes(probe: Probe) -> Finding:
    """Shares of classes among samples and data; a sample is of the class of its nearest."""
    if probe.labels is None:
        return Finding("classes", "skipped", "no labels given", "", "give data=(x, labels)")
    _, near = nearest(probe.samples, probe.x)
    finding, _ = _compared("classes", "class", probe.labels.cpu(), probe.labels[near].cpu())
    return finding


def check_labels(probe: Probe) -> Finding:
    """Do samples show the label asked for, as often as the nearest of data has the same label?"""
    draws = probe.draws(min(len(probe.x), 2 * probe.n), stream=11)
    if probe.asked is None or probe.labels is None or draws.cond is None:
        return Finding("labels", "skipped", "the model takes no labels, or none are given")
    _, near = nearest(probe.samples, probe.x)
    _, other = nearest(draws.x0, probe.x, own=True)
    agree = float((probe.labels[near] == probe.asked).double().mean())
    usual = float((probe.labels[other] == draws.cond).double().mean())
    said = (
        f"{agree:.0%} of the samples lie next to data of the label asked for; of data {usual:.0%}"
    )
    if agree > FOLLOWED * usual:
        return Finding("labels", "ok", said)
    advice = "check that labels and data are permuted together; more guidance; hide fewer labels"
    return Finding("labels", "bad", said, "labels not followed", advice)


def _clusters(probe: Probe) -> tuple[Tensor, Tensor]:
    """Clusters of data (N,) and of samples (n,): k-means, as many as stand apart best."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    few = probe.draws(min(len(probe.x), 1000), stream=10).x0.double().flatten(1).cpu().numpy()
    most = max(2, min(MOST, len(few) // 8))
    models = [KMeans(k, n_init=2, random_state=probe.seed).fit(few) for k in range(2, most + 1)]
    scores = [silhouette_score(few, m.labels_) for m in models]  # Rousseeuw, 1987
    best = models[scores.index(max(scores))]
    data, drawn = (
        torch.as_tensor(best.predict(v.double().flatten(1).cpu().numpy())).long()
        for v in (probe.x, probe.samples)
    )
    return data, drawn


def _places(x: Tensor, groups: Tensor) -> dict[int, str]:
    """Where clusters are, for points in the plane; of images that would say nothing."""
    if x[0].numel() > 3:
        return {}
    flat = x.flatten(1).cpu()
    means = {int(g): flat[groups == g].mean(0).tolist() for g in groups.unique()}
    return {g: f" at ({', '.join(f'{v:.2g}' for v in mean)})" for g, mean in means.items()}


def _compared(
    check: str, what: str, data: Tensor, drawn: Tensor, places: dict[int, str] | None = None
) -> tuple[Finding, list[int]]:
    """Shares of groups, each by a binomial test; and which are missing."""
    from scipy.stats import binom

    size = int(data.max()) + 1
    share, counts = data.bincount(minlength=size) / len(data), drawn.bincount(minlength=size)
    chance = torch.as_tensor(binom.cdf(counts.numpy(), len(drawn), share.double().numpy()))
    ratio = counts / len(drawn) / share.clamp(min=1e-30)
    low = (chance < RARE / size) & (ratio < THIN)
    thin, missing = low.nonzero()[:, 0].tolist(), (low & (ratio < MISSING)).nonzero()[:, 0].tolist()
    places = places or {}
    listed = ", ".join(
        f"{what} {g}{places.get(g, '')} {counts[g] / len(drawn):.1%} for {share[g]:.1%}"
        for g in thin
    )
    if missing:
        lost = float((share - counts / len(drawn))[missing].sum())
        said = f"{len(missing)} of {size} missing, {lost:.0%} of the data: {listed}"
        return Finding(check, "bad", said, "collapsed modes", ADVICE), missing
    if thin:
        return Finding(check, "look", f"rarer than in the data: {listed}", "thin modes", ADVICE), []
    here = ratio[share > 0]
    said = f"each {what} of {len(here)} is {float(here.min()):.2f} to {float(here.max()):.2f}"
    return Finding(check, "ok", f"{said} times as frequent as in the data"), []
