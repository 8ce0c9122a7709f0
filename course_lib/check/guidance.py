"""Checks of the exercises on conditional generation and guidance.

Right answers come from exact mixtures, from walking the guided flow numerically, and from sums
that are written out sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample, with_single
from course_lib.denoisers import GaussianMixture
from course_lib.paths import CosineVP, Linear, Path

__all__ = ["CHECKERS"]

# 1 drop_labels


def _drop_cases(seed: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(seed)
    for n, p, classes, dtype, label in (
        (8, 0.3, 10, torch.float32, "ten classes, single precision"),
        (6, 0.4, 6, torch.float64, "as many samples as classes, double precision"),
        (7, 0.0, 3, torch.float64, "p = 0"),
        (9, 1.0, 3, torch.float32, "p = 1"),
    ):
        u = torch.rand(n, generator=generator, dtype=dtype)
        # one far below p, one far above it, and the 0 that torch.rand may give, at the end
        u[0], u[1], u[-1] = 0.9, 0.1, 0.0
        labels = torch.randint(classes, (n,), generator=generator)
        kept = [y if v >= p else classes for y, v in zip(labels.tolist(), u.tolist(), strict=True)]
        yield Case(label, (labels, u, p, classes), torch.tensor(kept))


def _drop(
    null: Callable[[Tensor, int], Any] = lambda y, n: n,
    when: Callable[[Tensor, float], Tensor] = lambda u, p: u < p,
) -> Callable[..., Tensor]:
    """drop_labels with another label for none (of labels, num_classes), or other samples."""

    def wrong(labels: Tensor, u: Tensor, p: float, num_classes: int) -> Tensor:
        return torch.where(when(u, p), null(labels, num_classes), labels)

    return wrong


drop_labels = Checker(
    chapter="guidance",
    name="drop_labels",
    title="Forget the label now and then",
    kind="implementation",
    difficulty=1,
    minutes=5,
    cases=_drop_cases,
    mistakes=(
        Mistake(
            "one draw decides for the whole batch. Each sample has a draw of its own.",
            _drop(when=lambda u, p: (u[0] < p).expand(len(u))),
        ),
        Mistake(
            "labels are kept with probability p. That is how often they are dropped.",
            _drop(when=lambda u, p: u >= p),
        ),
        Mistake(
            "labels are dropped where u is above p, so with probability 1 - p. Drop them below.",
            _drop(when=lambda u, p: u > p),
        ),
        Mistake(
            "label 0 is a class like any other. No label is the number after the last class.",
            _drop(lambda y, n: 0),
        ),
        Mistake(
            "this is the last class: labels count from 0. The number after it is num_classes.",
            _drop(lambda y, n: n - 1),
        ),
        Mistake(
            "this is one too many: with labels from 0, the number after the last is num_classes.",
            _drop(lambda y, n: n + 1),
        ),
        Mistake(
            "an embedding has no row -1: no label is the number num_classes.",
            _drop(lambda y, n: -1),
        ),
        Mistake(
            "at p = 0 a label was dropped. The draws may be 0 but not 1: drop where u is smaller "
            "than p, not where they are equal.",
            _drop(when=lambda u, p: u <= p),
        ),
        Mistake(
            "half of the labels are dropped, whatever p is.",
            _drop(when=lambda u, p: u < 0.5),
        ),
        Mistake(
            "this says which labels are dropped. Return the labels.",
            lambda labels, u, p, n: u < p,
        ),
        Mistake(
            "the dropped labels are cut out, so the batch gets shorter. Replace them.",
            lambda labels, u, p, n: labels[u >= p],
        ),
        Mistake(
            "the labels have become floats, with which no embedding can be looked up.",
            lambda labels, u, p, n: torch.where(u < p, float(n), labels.to(u)),
        ),
    ),
)

# 2 guide


def _guide_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(SHAPES):
        cond, null = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        scale = (3.0, 7.5, 1.5)[i] + seed
        yield _guide_case(cond, null, scale, f"scale {scale:g}, {label}")
    for scale, name in ((1.0, "the condition alone"), (0.0, "no condition")):
        yield _guide_case(draw(*IMAGES), draw(*IMAGES), scale, f"scale {scale:g}: {name}")
    same = draw(*IMAGES)
    yield _guide_case(same, same.clone(), 4.0, "both predictions are the same")


def _guide_case(cond: Tensor, null: Tensor, scale: float, label: str) -> Case:
    return Case(label, (cond, null, scale), torch.lerp(null, cond, scale))


guide = Checker(
    chapter="guidance",
    name="guide",
    title="Guidance without a classifier",
    kind="implementation",
    difficulty=1,
    minutes=5,
    cases=_guide_cases,
    mistakes=(
        Mistake(
            "this is the convention of the paper, in which scale 0 is the condition alone. Here "
            "that is scale 1.",
            lambda c, n, s: c + s * (c - n),
        ),
        Mistake(
            "the two predictions are exchanged: scale 1 must give the conditional one.",
            lambda c, n, s: c + s * (n - c),
        ),
        Mistake(
            "the difference has the wrong sign: you are guided away from the condition.",
            lambda c, n, s: n + s * (n - c),
        ),
        Mistake(
            "the weights are s and 1. They must add up to 1: take the difference of the two.",
            lambda c, n, s: n + s * c,
        ),
        Mistake(
            "this is the difference of the two alone. Add it to the unconditional prediction.",
            lambda c, n, s: s * (c - n),
        ),
        Mistake(
            "the weights are s and -1, which add up to 1 for scale 2 only.",
            lambda c, n, s: s * c - n,
        ),
        Mistake(
            "only the conditional prediction was multiplied; that makes it larger, not guided.",
            lambda c, n, s: s * c,
        ),
        Mistake(
            "the scale is one too small: at scale 1 nothing but the condition must be left.",
            lambda c, n, s: n + (s - 1) * (c - n),
        ),
        Mistake(
            "this is a weighted mean, which lies between the two. Guidance goes beyond both.",
            lambda c, n, s: (s * c + n) / (s + 1),
        ),
        Mistake("the scale is not used: this is the conditional prediction.", lambda c, n, s: c),
    ),
)

# 3 guide_again


def _again_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(SHAPES):
        w, scale = 0.5 + i + 0.25 * seed, (3.0, 1.5, 0.5)[i]
        cond, null = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        yield _again_case(cond, null, w, scale, f"w = {w:g}, s = {scale:g}, {label}")
    for w, scale, label in (
        (0.0, 4.0, "no guidance inside"),
        (2.0, 1.0, "none added"),
        (3.0, 0.0, "back to no condition"),
    ):
        yield _again_case(
            draw(*IMAGES), draw(*IMAGES), w, scale, f"w = {w:g}, s = {scale:g}: {label}"
        )


def _again_case(cond: Tensor, null: Tensor, w: float, scale: float, label: str) -> Case:
    """The answer from the two branches themselves, of which the learner sees one."""
    total = scale + scale * w
    inner = (1 + w) * cond - w * null  # Ho & Salimans, 2022, eq. 6
    return Case(label, (inner, null, w, scale), (total, torch.lerp(null, cond, total)))


def _again(
    total: Callable[[float, float], float] = lambda w, s: s * (1 + w),
    scale: Callable[[float, float], float] = lambda w, s: s,
) -> Callable[..., Any]:
    """guide_again with another total of w and s, or another scale on top."""

    def wrong(inner: Tensor, null: Tensor, w: float, s: float) -> tuple[float, Tensor]:
        return total(w, s), null + scale(w, s) * (inner - null)

    return wrong


guide_again = Checker(
    chapter="guidance",
    name="guide_again",
    title="Guided twice, in two conventions",
    kind="derivation",
    difficulty=2,
    minutes=10,
    cases=_again_cases,
    mistakes=(
        Mistake(
            "w was taken for a scale of the course in the total: w = 0 is the condition alone, "
            "and that is 1.",
            _again(lambda w, s: s * w),
        ),
        Mistake(
            "the noise is right, but the scales do not add. Each stretches the difference that "
            "the one before has left.",
            _again(lambda w, s: s + 1 + w),
        ),
        Mistake(
            "the noise is right. In the total w and s were added, though one is not the other: "
            "bring both to one convention first, and then see what two stretches make.",
            _again(lambda w, s: s + w),
        ),
        Mistake(
            "the noise is right. The total forgets the guidance that the model has inside.",
            _again(lambda w, s: s),
        ),
        Mistake(
            "the noise is right. The total forgets the guidance that you add.",
            _again(lambda w, s: 1 + w),
        ),
        Mistake(
            "the noise is right. This total is in the convention of w: add 1 for that of s.",
            _again(lambda w, s: s * (1 + w) - 1),
        ),
        Mistake(
            "the noise is right. In the total s is taken as the paper's w too; it is a scale of "
            "the course already.",
            _again(lambda w, s: (1 + s) * (1 + w)),
        ),
        Mistake(
            "s is taken as the paper's w, in total and noise. It is a scale of the course already.",
            _again(lambda w, s: (1 + s) * (1 + w), lambda w, s: 1 + s),
        ),
        Mistake(
            "the total is right, but in the noise s is taken as the paper's w.",
            _again(scale=lambda w, s: 1 + s),
        ),
        Mistake(
            "the total is right, but the noise has the guidance of the model in it twice. What you "
            "are given is guided already.",
            _again(scale=lambda w, s: s * (1 + w)),
        ),
        Mistake(
            "the total is right. The noise is that of the model as it is, not guided once more.",
            _again(scale=lambda w, s: 1),
        ),
    ),
)

# 4 cross_attention


def _attention_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for b, n1, n2, dim, width, label in (
        (2, 5, 4, 6, 3, "all lengths different"),
        (3, 3, 3, 3, 3, "all lengths the same"),
        (2, 16, 7, 8, 4, "a small image and a sentence"),
    ):
        mask = torch.rand(b, n2, generator=torch.Generator().manual_seed(seed)) < 0.6
        mask[:, 0], mask[:, -1] = True, False
        yield _attention_case(draw, (b, n1, n2, dim, width), mask, label)
    yield _attention_case(draw, (2, 5, 4, 6, 3), torch.ones(2, 4).bool(), "all tokens are kept")


def _attention_case(draw: Any, lengths: tuple[int, ...], mask: Tensor, label: str) -> Case:
    b, n1, n2, dim, width = lengths
    h, c = draw(b, n1, dim), draw(b, n2, dim)
    wq, wk, wv = (draw(dim, width) for _ in range(3))
    rows = [_attend(x, tokens[kept], wq, wk, wv)
            for xs, tokens, kept in zip(h, c, mask, strict=True) for x in xs]  # fmt: skip
    return Case(label, (h, c, mask, wq, wk, wv), torch.stack(rows).reshape(b, n1, width))


def _attend(x: Tensor, tokens: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
    """What one position takes from the tokens that are kept."""
    scores = torch.stack([(x @ wq).dot(token @ wk) for token in tokens]) / len(wk.T) ** 0.5
    shares = scores.exp() / scores.exp().sum()
    return torch.stack([p * (y @ wv) for p, y in zip(shares, tokens, strict=True)]).sum(0)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask[:, None], -math.inf)


def _shares(scores: Tensor, mask: Tensor) -> Tensor:
    return _masked(scores, mask).softmax(-1)


def _attention(
    divide: Callable[[Tensor, Tensor], Any] = lambda q, h: q.shape[-1] ** 0.5,
    shares: Callable[[Tensor, Tensor], Tensor] = _shares,
    values: Callable[[Tensor, Tensor], Tensor] = lambda c, w: c @ w,
    keys: Callable[[Tensor, Tensor], Tensor] = lambda c, mask: c,
) -> Callable[..., Tensor]:
    """cross_attention with another divisor (of q, h), other shares (of scores, mask), or values."""

    def wrong(h: Tensor, c: Tensor, mask: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
        q, given = h @ wq, keys(c, mask)
        scores = q @ (given @ wk).mT / divide(q, h)
        return shares(scores, mask) @ values(given, wv)

    return wrong


def _swapped(h: Tensor, c: Tensor, mask: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
    """Tokens ask, positions answer."""
    scores = (c @ wq) @ (h @ wk).mT / wq.shape[1] ** 0.5
    return scores.softmax(-1) @ (h @ wv)


def _turned(h: Tensor, c: Tensor, mask: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
    scores = (h @ wq.T) @ (c @ wk.T).mT / wq.shape[1] ** 0.5
    return _shares(scores, mask) @ (c @ wv.T)


cross_attention = Checker(
    chapter="guidance",
    name="cross_attention",
    title="Positions ask, tokens answer",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=with_single(_attention_cases),
    mistakes=(
        Mistake(
            "the root is missing: the scores are divided by the root of the width of a query.",
            _attention(lambda q, h: 1),
        ),
        Mistake(
            "the scores are divided by d. Their standard deviation is its root.",
            _attention(lambda q, h: q.shape[-1]),
        ),
        Mistake(
            "this is the root of the width of h. The sum in a score has as many terms as a query "
            "is wide.",
            _attention(lambda q, h: h.shape[-1] ** 0.5),
        ),
        Mistake(
            "the mask is not used: tokens that only fill up a sentence are looked at.",
            _attention(shares=lambda scores, mask: scores.softmax(-1)),
        ),
        Mistake(
            "the mask is upside down: True means that a token is kept.",
            _attention(shares=lambda scores, mask: _shares(scores, ~mask)),
        ),
        Mistake(
            "the mask is applied after the softmax, so that the weights no longer add up to 1.",
            _attention(shares=lambda scores, mask: scores.softmax(-1) * mask[:, None]),
        ),
        Mistake(
            "the scores of masked tokens are 0, and e^0 is 1: they are still looked at. Which "
            "score has the weight 0?",
            _attention(shares=lambda scores, mask: (scores * mask[:, None]).softmax(-1)),
        ),
        Mistake(
            "the masked tokens are set to zero. Their scores are then 0, not their weights.",
            _attention(
                shares=lambda scores, mask: scores.softmax(-1),
                keys=lambda c, mask: c * mask[..., None],
            ),
        ),
        Mistake(
            "the softmax runs over the positions. Each position shares itself out among tokens.",
            _attention(shares=lambda scores, mask: _masked(scores, mask).softmax(1)),
        ),
        Mistake(
            "the softmax is missing: the weights of a position must be positive, with sum 1.",
            _attention(shares=lambda scores, mask: scores * mask[:, None]),
        ),
        Mistake(
            "the mask meets the wrong axis. It has shape (B, N2), one entry for each token: the "
            "axis of the positions lies between the two.",
            _attention(shares=lambda s, mask: s.masked_fill(~mask, -math.inf).softmax(-1)),
        ),
        Mistake(
            "the mask meets the positions. It belongs to the tokens, the last axis of the scores.",
            _attention(
                shares=lambda s, mask: s.masked_fill(~mask[..., None], -math.inf).softmax(-1)
            ),
        ),
        Mistake(
            "the tokens themselves are averaged. Multiply them by W_v first.",
            _attention(values=lambda c, w: c),
        ),
        Mistake(
            "the roles are exchanged: positions make the queries, tokens the keys and values.",
            _swapped,
        ),
        Mistake(
            "the matrices are transposed. The rows of h and c are multiplied from the right.",
            _turned,
        ),
    ),
)

# 5 classifier_guidance


def _classifier_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for path, b, scale, label in (
        (CosineVP(), 2, 1.0, "scale 1, as many samples as coordinates"),
        (Linear(), 5, 3.0, "scale 3, straight path"),
        (CosineVP(), 4, 0.0, "scale 0"),
    ):
        exact, classes = _two_classes(path), torch.arange(b) % 2
        t = (torch.arange(b, dtype=torch.float64) + 0.5 + 0.04 * seed) / (b + 0.5)
        x = (2 * draw(b, 2)).requires_grad_()
        log_prob = exact.log_class_prob(x, t)[torch.arange(b), classes]
        (grad,) = torch.autograd.grad(log_prob.sum(), x)
        x = x.detach()
        eps = exact.noise(x, t)
        right = torch.lerp(eps, exact.noise(x, t, classes), scale)
        yield Case(label, (eps, grad, path.sigma(t), scale), right)
    eps, grad, sigma = draw(*IMAGES), draw(*IMAGES), torch.tensor([0.3, 0.8], dtype=torch.float64)
    rows = [e - 2 * s * g for e, s, g in zip(eps, sigma.tolist(), grad, strict=True)]
    yield Case("scale 2, images", (eps, grad, sigma, 2.0), torch.stack(rows))


def _two_classes(path: Path) -> GaussianMixture:
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    covs = 0.3 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    return GaussianMixture(means, covs, weights, path, torch.tensor([0, 1]))


def _classifier(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda eps, grad, sigma, s: formula(eps, grad, per_sample(sigma, eps), s)


classifier_guidance = Checker(
    chapter="guidance",
    name="classifier_guidance",
    title="A classifier in the noise",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_classifier_cases),
    mistakes=(
        Mistake(
            "the sign is wrong: the noise is minus sigma times the score, so what is added to the "
            "score is taken from the noise.",
            _classifier(lambda e, g, d, s: e + s * d * g),
        ),
        Mistake(
            "the factor sigma is missing: it stands between the score and the noise.",
            _classifier(lambda e, g, d, s: e - s * g),
        ),
        Mistake(
            "sigma squared where sigma belongs. That is the factor in the guess of the data.",
            _classifier(lambda e, g, d, s: e - s * d**2 * g),
        ),
        Mistake(
            "sigma divides where it multiplies: the noise is -sigma times the score.",
            _classifier(lambda e, g, d, s: e - s * g / d),
        ),
        Mistake(
            "this is the guided score. Bring it back to noise: multiply it by -sigma.",
            _classifier(lambda e, g, d, s: -e / d + s * g),
        ),
        Mistake(
            "the noise itself was taken for the score: the gradient is added with a plus and no "
            "sigma.",
            _classifier(lambda e, g, d, s: e + s * g),
        ),
        Mistake(
            "this is minus the guided noise: the score is -eps / sigma.",
            _classifier(lambda e, g, d, s: -e + s * d * g),
        ),
        Mistake(
            "the scale is not used.",
            _classifier(lambda e, g, d, s: e - d * g),
        ),
        Mistake(
            "the scale multiplies the whole prediction. Only the gradient is scaled.",
            _classifier(lambda e, g, d, s: s * (e - d * g)),
        ),
        Mistake(
            "the scale is one too large: at scale 0 nothing of the classifier must be left.",
            _classifier(lambda e, g, d, s: e - (1 + s) * d * g),
        ),
        Mistake(
            "a root of 1 - sigma was taken. `sigma` is the factor of the noise itself; in the "
            "paper it is the root of 1 - alpha_bar.",
            _classifier(lambda e, g, d, s: e - s * (1 - d).sqrt() * g),
        ),
        Mistake(
            "this is alpha of a variance-preserving path where sigma belongs.",
            _classifier(lambda e, g, d, s: e - s * (1 - d**2).sqrt() * g),
        ),
        Mistake(
            "sigma has shape (B,): give it as many further axes of length 1 as eps has.",
            lambda e, g, sigma, s: e - s * sigma * g,
        ),
    ),
)

# 6 guide_in_interval

LOW, HIGH = 0.25, 0.625  # exact in every precision


def _interval_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    some = {3: (LOW, HIGH, 0.9), 4: (0.125, HIGH, LOW, 0.8), 5: (0.5, 0.05, LOW, 0.4, 0.95)}
    for shape, dtype, label in SHAPES:
        t = torch.tensor(some[shape[0]], dtype=dtype)
        cond, null = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        yield _interval_case(cond, null, t, 2.5 + seed, (LOW, HIGH), label)
    for times, ends, label in (
        ((0.0, 1.0), (0.0, 1.0), "the whole time"),
        ((0.7, 0.9), (LOW, HIGH), "all samples are noisier than the interval"),
    ):
        t = torch.tensor(times, dtype=torch.float64)
        yield _interval_case(draw(*IMAGES), draw(*IMAGES), t, 3.0, ends, label)


def _interval_case(
    cond: Tensor, null: Tensor, t: Tensor, scale: float, ends: tuple[float, float], label: str
) -> Case:
    rows = [
        torch.lerp(n, c, scale if ends[0] <= at <= ends[1] else 1.0)
        for c, n, at in zip(cond, null, t.tolist(), strict=True)
    ]
    return Case(label, (cond, null, t, scale, *ends), torch.stack(rows))


def _interval(
    inside: Callable[[Tensor, float, float], Tensor],
    outside: Callable[[Tensor, Tensor], Tensor] = lambda c, n: c,
) -> Callable[..., Tensor]:
    """guide_in_interval with other times inside, or another prediction outside."""

    def wrong(c: Tensor, n: Tensor, t: Tensor, s: float, low: float, high: float) -> Tensor:
        here = inside(t, low, high).reshape(-1, *[1] * (c.ndim - 1))
        return torch.where(here, n + s * (c - n), outside(c, n))

    return wrong


def _between(t: Tensor, low: float, high: float) -> Tensor:
    return (low <= t) & (t <= high)


def _interval_wrong_axis(c: Tensor, n: Tensor, t: Tensor, s: float, *ends: float) -> Tensor:
    return torch.where(_between(t, *ends), n + s * (c - n), c)


def _same_for_all(choose: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return _interval(lambda t, low, high: choose(_between(t, low, high)).expand(len(t)))


guide_in_interval = Checker(
    chapter="guidance",
    name="guide_in_interval",
    title="Guide only where it helps",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_interval_cases,
    mistakes=(
        Mistake(
            "outside of the interval you drop the condition. Only the guidance stops there: the "
            "scale is 1, not 0.",
            _interval(_between, lambda c, n: n),
        ),
        Mistake(
            "outside of the interval the prediction is 0. There it is the conditional one.",
            _interval(_between, lambda c, n: torch.zeros_like(c)),
        ),
        Mistake(
            "inside and outside are exchanged.",
            _interval(lambda t, low, high: ~_between(t, low, high)),
        ),
        Mistake(
            "both ends belong to the interval.",
            _interval(lambda t, low, high: (low < t) & (t < high)),
        ),
        Mistake(
            "the upper end belongs to the interval too.",
            _interval(lambda t, low, high: (low <= t) & (t < high)),
        ),
        Mistake(
            "the lower end belongs to the interval too.",
            _interval(lambda t, low, high: (low < t) & (t <= high)),
        ),
        Mistake(
            "the upper end is not used: at large t, in almost pure noise, you still guide.",
            _interval(lambda t, low, high: low <= t),
        ),
        Mistake(
            "the lower end is not used: at small t, close to the data, you still guide.",
            _interval(lambda t, low, high: t <= high),
        ),
        Mistake(
            "the two comparisons are joined by or, so every time is inside.",
            _interval(lambda t, low, high: (low <= t) | (t <= high)),
        ),
        Mistake(
            "the interval is mirrored: t = 0 is data.",
            _interval(lambda t, low, high: _between(1 - t, low, high)),
        ),
        Mistake(
            "the time of the first sample decides for all. Each sample has a time of its own.",
            _same_for_all(lambda inside: inside[0]),
        ),
        Mistake(
            "no sample is guided unless all are inside. Each sample has a time of its own.",
            _same_for_all(torch.all),
        ),
        Mistake(
            "all samples are guided as soon as one is inside. Each has a time of its own.",
            _same_for_all(torch.any),
        ),
        Mistake(
            "t has shape (B,): what follows from it needs as many further axes of length 1 as the "
            "predictions have.",
            _interval_wrong_axis,
        ),
    ),
)

# 7 rescale_guidance

RESCALED = (
    ((4, 1, 8, 8), torch.float32, 0.7, "phi = 0.7, a batch of images, single precision"),
    ((3, 3), torch.float64, 0.3, "phi = 0.3, as many samples as coordinates"),
    ((2, 3, 4, 4), torch.float64, 1.0, "phi = 1, images of three channels"),
    ((2, 5), torch.float64, 0.0, "phi = 0: no rescaling"),
)


def _rescale_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, phi, label in RESCALED:
        sizes = per_sample(0.5 + torch.arange(shape[0]), draw(*shape, dtype=dtype))
        cond = sizes * draw(*shape, dtype=dtype) + 0.6
        null = draw(*shape, dtype=dtype) - 0.4
        scale = 3.0 + 0.5 * seed
        rows = [_rescaled(c, n, scale, phi) for c, n in zip(cond, null, strict=True)]
        yield Case(label, (cond, null, scale, phi), torch.stack(rows))


def _rescaled(cond: Tensor, null: Tensor, scale: float, phi: float) -> Tensor:
    """One sample: its spread is moved from that of guidance to that of the condition."""
    guided = torch.lerp(null, cond, scale)
    old, new = ((x.square().mean() - x.mean() ** 2).sqrt() for x in (guided, cond))
    return guided * (1 + phi * (new / old - 1))


def _spread(x: Tensor, axes: slice = slice(1, None)) -> Tensor:
    return x.std(tuple(range(x.ndim))[axes], keepdim=True)


def _rescale(
    factor: Callable[..., Tensor],
    blend: Callable[..., Tensor] = lambda guided, rescaled, c, phi: (
        phi * rescaled + (1 - phi) * guided
    ),
) -> Callable[..., Tensor]:
    """rescale_guidance with another factor (of guided, cond, null), or another blend."""

    def wrong(c: Tensor, n: Tensor, scale: float, phi: float) -> Tensor:
        guided = n + scale * (c - n)
        return blend(guided, guided * factor(guided, c, n), c, phi)

    return wrong


def _fair(guided: Tensor, c: Tensor, n: Tensor) -> Tensor:
    return _spread(c) / _spread(guided)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def _of_channel(x: Tensor) -> Tensor:
    return _spread(x, slice(2, None)) if x.ndim > 2 else _spread(x)


def _standardised(c: Tensor, n: Tensor, scale: float, phi: float) -> Tensor:
    guided, axes = n + scale * (c - n), tuple(range(1, c.ndim))
    centred = guided - guided.mean(axes, keepdim=True)
    moved = centred * _fair(guided, c, n) + c.mean(axes, keepdim=True)
    return phi * moved + (1 - phi) * guided


rescale_guidance = Checker(
    chapter="guidance",
    name="rescale_guidance",
    title="Too much contrast",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_rescale_cases,
    mistakes=(
        Mistake(
            "the ratio is upside down: where guidance has made the spread too large, the factor "
            "must be below 1.",
            _rescale(lambda g, c, n: _spread(g) / _spread(c)),
        ),
        Mistake(
            "phi and 1 - phi are exchanged: phi = 0 must leave the guided prediction alone.",
            _rescale(_fair, lambda guided, rescaled, c, phi: phi * guided + (1 - phi) * rescaled),
        ),
        Mistake(
            "phi is not used: this is rescaled all the way.",
            _rescale(_fair, lambda guided, rescaled, c, phi: rescaled),
        ),
        Mistake(
            "nothing is rescaled: this is the guided prediction.",
            _rescale(_fair, lambda guided, rescaled, c, phi: guided),
        ),
        Mistake(
            "the rest, 1 - phi, is taken of the conditional prediction. It belongs to the guided "
            "one.",
            _rescale(_fair, lambda guided, rescaled, c, phi: phi * rescaled + (1 - phi) * c),
        ),
        Mistake(
            "one standard deviation is taken over the whole batch. Each sample has its own.",
            _rescale(lambda g, c, n: c.std() / g.std()),
        ),
        Mistake(
            "the standard deviations run over the batch. They belong to each sample, over all its "
            "coordinates.",
            _rescale(lambda g, c, n: _spread(c, slice(0, 1)) / _spread(g, slice(0, 1))),
        ),
        Mistake(
            "each channel gets a factor of its own, which changes colours. Take one for the whole "
            "sample.",
            _rescale(lambda g, c, n: _of_channel(c) / _of_channel(g)),
        ),
        Mistake(
            "the spread is brought to that of the prediction without condition.",
            _rescale(lambda g, c, n: _spread(n) / _spread(g)),
        ),
        Mistake(
            "this is the ratio of the variances. The factor is their root.",
            _rescale(lambda g, c, n: (_spread(c) / _spread(g)) ** 2),
        ),
        Mistake(
            "the lengths are compared, in which the mean of a sample counts too. Take standard "
            "deviations.",
            _rescale(lambda g, c, n: _norm(c) / _norm(g)),
        ),
        Mistake(
            "the mean of the sample is moved too. The rule only multiplies.",
            _standardised,
        ),
        Mistake(
            "this is guided in the paper's convention w: here scale 1 is the condition alone.",
            lambda c, n, s, phi: _rescale(_fair)(c, n, 1 + s, phi),
        ),
    ),
)

# 8 guided_variance


def _variance_cases(seed: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(seed)
    for shape, scale, label in (
        ((6,), 3.0 + 0.5 * seed, "six pairs"),
        ((2, 4), 1.5, "a table of pairs"),
        ((7,), 0.5, "halfway to the condition"),
        ((7,), 1.0, "the condition alone"),
    ):
        u = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
        cond, null = 0.3 + u[0], 1.4 + 2 * u[1]
        guided = (2 * _log_stretch(cond, null, scale)).exp()
        answer = (guided, _tilted(cond, null, scale))
        yield Case(f"scale {scale:g}, {label}", (cond, null, scale), answer, tolerance=1e-6)


def _log_stretch(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Log of the factor by which the guided flow stretches noise, by quadrature.

    On x = cos(a) x0 + sin(a) eps the velocity of N(m, v) has the slope sin(a) cos(a) (1 - v) /
    (cos(a)^2 v + sin(a)^2) in x; the walk goes from pure noise, a = pi/2, down to data, a = 0.
    """
    a = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)

    def slope(v: Tensor) -> Tensor:
        v = v[..., None]
        return a.sin() * a.cos() * (1 - v) / (a.cos() ** 2 * v + a.sin() ** 2)

    return -torch.trapezoid(torch.lerp(slope(null), slope(cond), scale), a)


def _tilted(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Variance of p(x|c)^s p(x)^(1-s), from the curvature of its logarithm."""
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).to(cond)
    log_c, log_n = (-(x**2) / (2 * v[..., None]) for v in (cond, null))
    tilted = torch.lerp(log_n, log_c, scale)
    return -1 / (tilted[..., 0] - 2 * tilted[..., 1] + tilted[..., 2])


def _pair(
    guided: Callable[..., Tensor] = lambda a, v, s: a**s * v ** (1 - s),
    tilted: Callable[..., Tensor] = lambda a, v, s: 1 / (s / a + (1 - s) / v),
) -> Callable[..., Any]:
    return lambda a, v, s: (guided(a, v, s), tilted(a, v, s))


guided_variance = Checker(
    chapter="guidance",
    name="guided_variance",
    title="What guidance does not sample",
    kind="derivation",
    difficulty=3,
    minutes=30,
    cases=with_single(_variance_cases),
    mistakes=(
        Mistake(
            "both are the variance of the tilted density. The guided flow does not lead there: "
            "solve its equation.",
            _pair(guided=lambda a, v, s: 1 / (s / a + (1 - s) / v)),
        ),
        Mistake(
            "the first is right, and the second repeats it. The logarithm of the tilted density "
            "is a sum of two parabolas: precisions add.",
            _pair(tilted=lambda a, v, s: a**s * v ** (1 - s)),
        ),
        Mistake(
            "the two values are exchanged.",
            lambda a, v, s: _pair()(a, v, s)[::-1],
        ),
        Mistake(
            "these are standard deviations; the variances are their squares.",
            lambda a, v, s: tuple(x.sqrt() for x in _pair()(a, v, s)),
        ),
        Mistake(
            "the first is a standard deviation: the flow stretches x by it, and its square is the "
            "variance.",
            _pair(guided=lambda a, v, s: a ** (s / 2) * v ** ((1 - s) / 2)),
        ),
        Mistake(
            "the second is a precision; the variance is one over it.",
            _pair(tilted=lambda a, v, s: s / a + (1 - s) / v),
        ),
        Mistake(
            "a and v are exchanged: at s = 1 the variance of the class must come out.",
            lambda a, v, s: _pair()(v, a, s),
        ),
        Mistake(
            "the weights of the two variances in the first are s and 1 - s. For steps of a flow "
            "the factors multiply, so it is their logarithms that are weighted.",
            _pair(guided=lambda a, v, s: s * a + (1 - s) * v),
        ),
        Mistake(
            "in the second the variances are weighted. In a product of Gaussians the precisions "
            "add.",
            _pair(tilted=lambda a, v, s: s * a + (1 - s) * v),
        ),
        Mistake(
            "the first is that of p(x|c)^s. The flow is pushed away from p(x) too.",
            _pair(guided=lambda a, v, s: a / s),
        ),
        Mistake(
            "the second is that of p(x|c)^s: the factor p(x)^(1-s) is missing.",
            _pair(tilted=lambda a, v, s: a / s),
        ),
        Mistake(
            "the first is the variance of the class: guidance does change it.",
            _pair(guided=lambda a, v, s: a),
        ),
        Mistake(
            "the exponent of v in the first has the wrong sign: the weights add up to 1.",
            _pair(guided=lambda a, v, s: a**s * v ** (s - 1)),
        ),
        Mistake(
            "a sign in the second is wrong: its weights s and 1 - s add up to 1.",
            _pair(tilted=lambda a, v, s: 1 / (s / a + (s - 1) / v)),
        ),
    ),
)

# 9 overshoot_experiment

PREDICTIONS = ("short", "at", "beyond")
SCALES = (1, 2, 4)
STEPS = 20


def _overshoot_cases(seed: int) -> Iterator[Case]:
    for gap in (1.0, 2.0):
        cond, null = _classes(gap)
        right = {str(s): _mean(cond, null, s) for s in SCALES}
        answer = (frozenset(PREDICTIONS), right)
        # of 5,000 samples the mean is known to 0.7 %
        label = f"classes at +-{gap:g}, of standard deviation 0.5"
        yield Case(label, (cond, null, 5_000), answer, tolerance=0.04)


def _classes(gap: float, std: float = 0.5) -> tuple[Any, Any]:
    """Velocities on the straight path: of N(gap, std^2), and of its mixture with N(-gap, std^2)."""

    def one(x: Tensor, t: Tensor, mean: float) -> Tensor:
        variance = ((1 - t) * std) ** 2 + t**2
        return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)

    def both(x: Tensor, t: Tensor) -> Tensor:
        share = (2 * gap * (1 - t) * x / (((1 - t) * std) ** 2 + t**2)).sigmoid()
        return share * one(x, t, gap) + (1 - share) * one(x, t, -gap)

    return lambda x, t: one(x, t, gap), both


def _walk(cond: Any, null: Any, rule: Callable[..., Tensor], ts: Tensor) -> Tensor:
    """Samples of a guided flow, from the quantiles of the noise in place of draws."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x = math.sqrt(2) * torch.erfinv(2 * u - 1)
    for t, s in pairwise(ts):
        now = t.expand(len(x))
        x = x + (s - t) * rule(cond(x, now), null(x, now))
    return x


def _mean(cond: Any, null: Any, scale: float, grid: tuple[float, float, int] | None = None) -> Any:
    ts = torch.linspace(*(grid or (1, 0, STEPS + 1)), dtype=torch.float64)
    return _walk(cond, null, lambda c, n: n + scale * (c - n), ts).mean().item()


def _overshoot(measure: Callable[[Any, Any, int], float]) -> Callable[..., Any]:
    return lambda cond, null, samples: (
        PREDICTIONS[0],
        {str(s): measure(cond, null, s) for s in SCALES},
    )


def _overshoot_by(rule: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Any]:
    ts = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    return _overshoot(lambda f, g, s: _walk(f, g, lambda c, n: rule(c, n, s), ts).mean().item())


def _overshoot_spread(cond: Any, null: Any, scale: int) -> float:
    ts = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    return _walk(cond, null, lambda c, n: n + scale * (c - n), ts).std().item()


def _overshoot_remark(value: tuple[str, dict[str, float]]) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    verb = foretold(prediction, "beyond")
    values = ", ".join(f"{measured[str(s)]:.2f} with scale {s}" for s in SCALES)
    return (
        f"the samples have the mean {values}; that of the class is 1. Guidance leads beyond it "
        f"({verb}), and farther with every scale."
    )


overshoot_experiment = Checker(
    chapter="guidance",
    name="overshoot_experiment",
    title="How far does guidance push?",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_overshoot_cases,
    mistakes=(
        Mistake(
            "the scale makes no difference in your measurement: this is the condition alone.",
            _overshoot(lambda f, g, s: _mean(f, g, 1)),
        ),
        Mistake(
            "these are samples of scale s + 1, the paper's convention. Here scale 1 is the "
            "condition alone.",
            _overshoot(lambda f, g, s: _mean(f, g, s + 1)),
        ),
        Mistake(
            "these are standard deviations; measure means.",
            _overshoot(_overshoot_spread),
        ),
        Mistake(
            "the difference of the velocities has the wrong sign: the samples flee the class.",
            _overshoot_by(lambda c, n, s: n - s * (c - n)),
        ),
        Mistake(
            "the velocity is that of the class, s times. This moves faster, it does not guide.",
            _overshoot_by(lambda c, n, s: s * c),
        ),
        Mistake(
            "the weights of the two velocities are s and 1. They must add up to 1.",
            _overshoot_by(lambda c, n, s: n + s * c),
        ),
        Mistake(
            "the difference of the velocities is followed alone. Add it to that without condition.",
            _overshoot_by(lambda c, n, s: s * (c - n)),
        ),
        Mistake(
            "a single step leads all samples to s times the mean. Take 20 steps.",
            _overshoot(lambda f, g, s: _mean(f, g, s, (1, 0, 2))),
        ),
        Mistake(
            "you walk against the flow: going down in time, the step is negative.",
            _overshoot_by(lambda c, n, s: -(n + s * (c - n))),
        ),
        Mistake(
            "the samples were moved from t = 0 to t = 1. Start with noise at t = 1.",
            _overshoot(lambda f, g, s: _mean(f, g, s, (0, 1, STEPS + 1))),
        ),
    ),
    remark=_overshoot_remark,
)

# 10 negative_prompt


def _negative_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(SHAPES):
        pos, neg = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        scale = (1.5, 2.0, 4.0)[i] + 0.25 * (seed if i != 1 else 0)
        yield Case(f"scale {scale:g}, {label}", (pos, neg, scale), torch.lerp(neg, pos, scale))
    same = draw(*IMAGES)
    yield Case("the same prompt twice", (same, same.clone(), 1.5), same.clone())
    pos = draw(*IMAGES)
    yield Case("scale 1: the prompt alone", (pos, draw(*IMAGES), 1.0), pos.clone())


negative_prompt = Checker(
    chapter="guidance",
    name="negative_prompt",
    title="Spot the bug: a negative prompt",
    kind="bug",
    difficulty=1,
    minutes=10,
    cases=_negative_cases,
    mistakes=(
        Mistake(
            "this is still the formula with the bug. What comes out if both prompts are the same?",
            lambda p, n, s: p - (s - 1) * n,
        ),
        Mistake(
            "the weights are 1 and -s. They must add up to 1.",
            lambda p, n, s: p - s * n,
        ),
        Mistake(
            "the weights are 1 and -0.5 whatever the scale. They must follow it, and add up to 1.",
            lambda p, n, s: p - 0.5 * n,
        ),
        Mistake(
            "the weight of the negative prompt is fixed. It must be 1 - scale.",
            lambda p, n, s: s * p - 0.5 * n,
        ),
        Mistake(
            "this is the difference alone, with weights that add up to 0. Add it to the negative "
            "prediction.",
            lambda p, n, s: s * (p - n),
        ),
        Mistake(
            "the weights add up to 1, but the positive one is 1 + scale. At scale 1 nothing of the "
            "negative prompt must be left.",
            lambda p, n, s: p + s * (p - n),
        ),
        Mistake(
            "the two prompts are exchanged: you get what you wanted to avoid.",
            lambda p, n, s: p + s * (n - p),
        ),
        Mistake(
            "the difference has the wrong sign: it must point from the negative prompt to the "
            "positive one.",
            lambda p, n, s: n + s * (n - p),
        ),
        Mistake(
            "the sum is divided by its weights. They then add up to 1, but at scale 2 they were 1 "
            "and -1, and you divide by 0.",
            lambda p, n, s: (p - (s - 1) * n) / (1 - (s - 1)),
        ),
        Mistake(
            "the weights are s and -1, which add up to 1 for scale 2 only.",
            lambda p, n, s: s * p - n,
        ),
        Mistake(
            "a sign is turned: the negative prompt is now asked for.",
            lambda p, n, s: p + (s - 1) * n,
        ),
        Mistake(
            "the negative prompt is not used.",
            lambda p, n, s: p,
        ),
    ),
)

CHECKERS = (
    drop_labels,
    guide,
    guide_again,
    cross_attention,
    classifier_guidance,
    guide_in_interval,
    rescale_guidance,
    guided_variance,
    overshoot_experiment,
    negative_prompt,
)
