"""Checks of the exercises on text to image and CLIP.

Right answers come from vectors at known angles, from batches that are listed one by one, from
attention word by word, from pairs of pixels, and from a model that is asked once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import foretold, normal, with_single
from course_lib.data import follows
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.pretrained import load_pretrained
from course_lib.samplers import sample

__all__ = ["CHECKERS"]


def _compass(draw: Callable[..., Tensor], count: int, width: int) -> tuple[Tensor, Tensor]:
    """Vectors of several lengths in one plane of many dimensions, and their angles in it."""
    angles, lengths = 3 * draw(count), 0.5 + draw(count).exp()
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths[:, None], angles


def _turned(draw: Callable[..., Tensor], width: int, *flat: Tensor) -> tuple[Tensor, ...]:
    """Vectors of the plane, put into a space of some width by one rotation."""
    plane = torch.linalg.qr(draw(width, 2))[0]
    return tuple(vectors @ plane.T for vectors in flat)


# 1 cosine_matrix

TABLES = ((3, 5, 4, "more texts than images"), (4, 4, 4, "all lengths the same"), (6, 2, 9, "wide"))


def _cosine_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for images, texts, width, label in TABLES:
        f, at = _compass(draw, images, width)
        g, other = _compass(draw, texts, width)
        yield Case(label, _turned(draw, width, f, g), torch.cos(at[:, None] - other))


def _cosines(
    f: Callable[[Tensor], Tensor] = lambda v: normalize(v, dim=1),
    g: Callable[[Tensor], Tensor] = lambda v: normalize(v, dim=1),
    last: Callable[[Tensor], Tensor] = lambda c: c,
) -> Callable[..., Tensor]:
    """cosine_matrix with other lengths of either side, or with something done to the cosines."""
    return lambda images, texts: last(f(images) @ g(texts).T)


def _same(v: Tensor) -> Tensor:
    return v


cosine_matrix = Checker(
    chapter="text_to_image",
    name="cosine_matrix",
    title="Every image with every text",
    kind="implementation",
    difficulty=1,
    minutes=6,
    cases=with_single(_cosine_cases),
    mistakes=(
        Mistake(
            "these are products, in which the lengths of the vectors count.",
            _cosines(_same, _same),
        ),
        Mistake(
            "the images have length 1, the texts have not. The lengths of both must not count.",
            _cosines(g=_same),
        ),
        Mistake(
            "the texts have length 1, the images have not. The lengths of both must not count.",
            _cosines(f=_same),
        ),
        Mistake(
            "the lengths are taken down the batch. A vector is a row, and so are its numbers.",
            _cosines(lambda v: normalize(v, dim=0), lambda v: normalize(v, dim=0)),
        ),
        Mistake(
            "the products are divided by the squares of the lengths.",
            _cosines(*2 * (lambda v: v / v.square().sum(1, keepdim=True),)),
        ),
        Mistake(
            "all vectors are divided by one number, the norm of the whole table. Each has a length "
            "of its own.",
            _cosines(*2 * (lambda v: v / v.norm(),)),
        ),
        Mistake(
            "this pairs row with row. Every image must meet every text.",
            lambda images, texts: cosine_similarity(images, texts, dim=1),
        ),
        Mistake(
            "rows and columns are exchanged: a row belongs to an image.",
            _cosines(last=lambda c: c.T),
        ),
        Mistake(
            "the sign is lost. Vectors that point away from each other have the cosine -1.",
            _cosines(last=torch.abs),
        ),
        Mistake(
            "these are angles. Their cosines are asked for.",
            _cosines(last=lambda c: torch.acos(c.clamp(-1, 1))),
        ),
        Mistake(
            "these are distances of the unit vectors: near means small here, and large for "
            "cosines.",
            _cosines(last=lambda c: (2 - 2 * c).clamp(min=0).sqrt()),
        ),
        Mistake(
            "each row was made to sum to 1. The bare cosines are asked for.",
            _cosines(last=lambda c: c.softmax(1)),
        ),
        Mistake(
            "the products are divided by the root of the number of coordinates, as attention does. "
            "Divide by both lengths.",
            lambda images, texts: images @ texts.T / images.shape[1] ** 0.5,
        ),
    ),
)

# 2 contrastive_loss

PAIRS = (
    ((5, 3), torch.float32, "five pairs, single precision"),
    ((4, 4), torch.float64, "as many pairs as coordinates"),
    ((2, 6), torch.float64, "two pairs"),
)


def _contrast_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (shape, dtype, label), tau in zip(PAIRS, (0.2, 0.5, 0.1), strict=True):
        temperature = torch.tensor(tau + 0.01 * seed, dtype=dtype)
        yield _contrast_case(draw, shape, temperature, label)
    cold = torch.tensor(0.03 + 0.01 * seed, dtype=torch.float64)
    yield _contrast_case(draw, (6, 3), cold, "a low temperature")
    eye = 3 * torch.eye(4, dtype=torch.float64)
    temperature = torch.tensor(0.5).to(eye)
    right = torch.log1p(3 * torch.exp(-1 / temperature))
    yield Case("pairs at right angles to all others", (eye, eye / 6, temperature), right)


def _contrast_case(
    draw: Callable[..., Tensor], shape: tuple[int, int], temperature: Tensor, label: str
) -> Case:
    """Angles, not vectors, so that no length is needed; and one sum for each row and column."""
    (f, at), (g, other) = (_compass(draw, *shape) for _ in range(2))
    logits = torch.cos(at[:, None] - other).to(temperature) / temperature
    total = torch.zeros_like(temperature)
    for i in range(len(at)):
        for others in (logits[i], logits[:, i]):
            total = total + (others - logits[i, i]).exp().sum().log()
    vectors = _turned(draw, shape[1], f, g)
    return Case(label, (*(v.to(temperature) for v in vectors), temperature), total / (2 * len(at)))


def _images_ask(logits: Tensor) -> Tensor:
    return -logits.log_softmax(1).diagonal().mean()


def _texts_ask(logits: Tensor) -> Tensor:
    return -logits.log_softmax(0).diagonal().mean()


def _contrast(
    loss: Callable[[Tensor], Tensor] = lambda v: (_images_ask(v) + _texts_ask(v)) / 2,
    scaled: Callable[[Tensor, Tensor], Tensor] = lambda cosines, tau: cosines / tau,
    unit: Callable[[Tensor], Tensor] = lambda v: normalize(v, dim=1),
) -> Callable[..., Tensor]:
    """contrastive_loss with another loss of the logits, other logits, or other vectors."""
    return lambda images, texts, tau: loss(scaled(unit(images) @ unit(texts).T, tau))


def _without_own(logits: Tensor) -> Tensor:
    """The others alone in the denominator."""
    own = torch.eye(len(logits)).bool()
    others = logits.masked_fill(own, -math.inf)
    return ((others.logsumexp(1) + others.logsumexp(0)) / 2 - logits.diagonal()).mean()


def _sigmoids(logits: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(logits)).to(logits) - 1
    return -(signs * logits).sigmoid().log().sum(1).mean()


contrastive_loss = Checker(
    chapter="text_to_image",
    name="contrastive_loss",
    title="The loss of CLIP",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_contrast_cases,
    mistakes=(
        Mistake(
            "the vectors are not brought to length 1. A long one is then near to all.",
            _contrast(unit=_same),
        ),
        Mistake(
            "the images look for their texts, but the texts do not look for their images. Both "
            "directions count.",
            _contrast(_images_ask),
        ),
        Mistake(
            "the texts look for their images, but the images do not look for their texts. Both "
            "directions count.",
            _contrast(_texts_ask),
        ),
        Mistake(
            "the cosines are multiplied by the temperature. Divide by it: the colder, the sharper.",
            _contrast(scaled=lambda cosines, tau: cosines * tau),
        ),
        Mistake(
            "the temperature is not used.",
            _contrast(scaled=lambda cosines, tau: cosines + 0 * tau),
        ),
        Mistake(
            "the temperature divides the loss. It belongs to the cosines, before the softmax.",
            lambda f, g, tau: _contrast(scaled=lambda c, t: c)(f, g, tau) / tau,
        ),
        Mistake(
            "the mean runs over the whole table. Of each row only the own text counts, and the "
            "others are in its softmax.",
            _contrast(lambda v: -(v.log_softmax(1).mean() + v.log_softmax(0).mean()) / 2),
        ),
        Mistake(
            "the softmax runs over the whole table at once. Each row, and each column, is a "
            "question of its own.",
            _contrast(lambda v: v.logsumexp((0, 1)) - v.diagonal().mean()),
        ),
        Mistake(
            "both directions are added. Take their mean, so that guessing costs log N.",
            _contrast(lambda v: _images_ask(v) + _texts_ask(v)),
        ),
        Mistake(
            "this is a sum over the batch. Take the mean.",
            _contrast(lambda v: (_images_ask(v) + _texts_ask(v)) / 2 * len(v)),
        ),
        Mistake(
            "the right pair is left out of the denominator. It is one of the classes.",
            _contrast(_without_own),
        ),
        Mistake(
            "the logarithm is missing: this is one minus the mean probability.",
            _contrast(lambda v: 1 - (v.softmax(0) + v.softmax(1)).diagonal().mean() / 2),
        ),
        Mistake(
            "the logarithm is taken of the mean. Take the mean of the logarithms.",
            _contrast(lambda v: -((v.softmax(0) + v.softmax(1)).diagonal() / 2).log().mean()),
        ),
        Mistake(
            "the sign is missing: a logarithm of a probability is negative.",
            _contrast(lambda v: -(_images_ask(v) + _texts_ask(v)) / 2),
        ),
        Mistake(
            "each pair is judged alone, by a sigmoid. Here the texts of a batch compete.",
            _contrast(_sigmoids),
        ),
        Mistake(
            "the batch was brought to length 1, column by column. A vector is a row.",
            _contrast(unit=lambda v: normalize(v, dim=0)),
        ),
        Mistake(
            "the softmax is taken twice: the cross-entropy of torch wants logits and takes one of "
            "its own.",
            _contrast(lambda v: (_images_ask(v.softmax(1)) + _texts_ask(v.softmax(0))) / 2),
        ),
        Mistake(
            "the exponential of the temperature multiplies the cosines. In some code the logarithm "
            "of the scale is learned; here it is the temperature, and it divides them.",
            _contrast(scaled=lambda cosines, tau: cosines * tau.exp()),
        ),
        Mistake(
            "these are bits. The loss is asked for in nats.",
            _contrast(lambda v: (_images_ask(v) + _texts_ask(v)) / 2 / math.log(2)),
        ),
    ),
)

# 3 loss_floor


def _floor_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for classes, n, dtype, label in (
        (6, 3, torch.float64, "six classes, batches of three"),
        (7, 3, torch.float32, "seven classes, single precision"),
        (2, 6, torch.float64, "two classes, batches of six"),
        (3, 2, torch.float64, "pairs"),
    ):
        p = draw(classes).softmax(0)
        yield Case(label, (p.to(dtype), n), _listed(p, n).to(dtype))
    yield Case("one class", (torch.ones(1).double(), 5), torch.tensor(5.0).double().log())
    p = draw(3).softmax(0)
    yield Case("a batch of one", (p, 1), torch.zeros(()).double())


def _listed(p: Tensor, n: int) -> Tensor:
    """All batches one by one: what the posterior costs in each."""
    total = torch.zeros(()).double()
    for batch in itertools.product(range(len(p)), repeat=n):
        chance = math.prod(p[c].item() for c in batch)
        total += chance * math.log(batch.count(batch[0]))
    return total


def _floored(
    cost: Callable[[Tensor, int], Tensor] = lambda m, n: torch.log(1 + m),
    among: Callable[[int], int] = lambda n: n - 1,
    classes: Callable[[Tensor, Tensor], Tensor] = lambda p, costs: (p * costs).sum(),
    ways: bool = True,
) -> Callable[[Tensor, int], Tensor]:
    """loss_floor with another cost of m others, another number of them, or another mean."""

    def wrong(p: Tensor, n: int) -> Tensor:
        k = among(n)
        m = torch.arange(k + 1).to(p)
        choose = torch.tensor([float(math.comb(k, i)) if ways else 1.0 for i in range(k + 1)])
        chance = choose.to(p) * p[:, None] ** m * (1 - p[:, None]) ** (k - m)
        return classes(p, (chance * cost(m, n)).sum(1))

    return wrong


def _without_the_rest(p: Tensor, n: int) -> Tensor:
    """The m equal ones counted, and the others of the batch left free."""
    terms = [math.comb(n - 1, m) * math.log(1 + m) * p ** (m + 1) for m in range(n)]
    return torch.stack(terms).sum()


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum()


loss_floor = Checker(
    chapter="text_to_image",
    name="loss_floor",
    title="What no CLIP can beat",
    kind="derivation",
    difficulty=3,
    minutes=30,
    cases=_floor_cases,
    mistakes=(
        Mistake(
            "this is the logarithm of the mean number of equal texts. The mean of the logarithm "
            "is asked for, and it is smaller.",
            lambda p, n: (p * torch.log(1 + (n - 1) * p)).sum(),
        ),
        Mistake(
            "this is the bound by the mutual information. No batch of finite size reaches it.",
            lambda p, n: (math.log(n) - _entropy(p)).clamp(min=0),
        ),
        Mistake(
            "this is the bound by the mutual information, which may even be negative; and a loss "
            "cannot be.",
            lambda p, n: math.log(n) - _entropy(p),
        ),
        Mistake(
            "the own text is counted among the others: of a batch of N there are N - 1 others.",
            _floored(among=lambda n: n),
        ),
        Mistake(
            "m others are equal, and the own text is one more: m + 1 share the guess.",
            _floored(lambda m, n: torch.log(m.clamp(min=1))),
        ),
        Mistake(
            "the classes are counted alike. A frequent one is met more often.",
            _floored(classes=lambda p, costs: costs.mean()),
        ),
        Mistake(
            "the classes are summed, not averaged. Weigh each with how often the own text has it.",
            _floored(classes=lambda p, costs: costs.sum()),
        ),
        Mistake(
            "the m equal ones may stand in many places of the batch. How many choices are there?",
            _floored(ways=False),
        ),
        Mistake(
            "this is the loss of guessing, log N: as if the image told nothing.",
            lambda p, n: torch.tensor(float(n)).to(p).log() + 0 * p.sum(),
        ),
        Mistake(
            "this is the chance of a wrong choice. Its cost in nats is asked for.",
            _floored(lambda m, n: m / (1 + m)),
        ),
        Mistake(
            "these are bits. The loss is measured in nats.",
            _floored(lambda m, n: torch.log2(1 + m)),
        ),
        Mistake(
            "only whether there is an equal one counts here, not how many.",
            _floored(lambda m, n: math.log(2) * (m > 0)),
        ),
        Mistake(
            "the sign is turned: a guess among several costs something, and no loss is below 0.",
            _floored(lambda m, n: -torch.log(1 + m)),
        ),
        Mistake(
            "this is twice the floor. One direction is asked for, and the mean of both is as "
            "large.",
            _floored(lambda m, n: 2 * torch.log(1 + m)),
        ),
        Mistake(
            "this is the cost of the mean chance of a right guess. The mean of the cost is asked "
            "for, and it is larger.",
            lambda p, n: -_floored(lambda m, n: 1 / (1 + m))(p, n).log(),
        ),
        Mistake(
            "the sum ends too early: all the others of the batch may tell the same.",
            _floored(lambda m, n: torch.log(1 + m) * (m < n - 1)),
        ),
        Mistake(
            "the rest of the batch is left free. If m others tell the same and no more, the rest "
            "tells something else, and that has a chance too.",
            _without_the_rest,
        ),
        Mistake(
            "this is the entropy of the classes: what image and text share, not what is left to "
            "guess in a batch.",
            lambda p, n: _entropy(p) + 0 * n,
        ),
    ),
)

# 4 prompt_ensemble

SETS = (
    ((4, 3, 2, 5), "three classes of two prompts"),
    ((3, 3, 3, 3), "all lengths the same"),
    ((2, 6, 1, 4), "one prompt a class"),
)


def _ensemble_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (b, k, p, d), label in SETS:
        images, texts = 2 * draw(b, d), draw(k, p, d) * (0.5 + draw(k, p, 1).exp())
        tau = 0.5 + 0.1 * seed
        rows = [_ensembled(image, texts, tau) for image in images]
        yield Case(label, (images, texts, tau), torch.stack(rows))


def _ensembled(image: Tensor, texts: Tensor, tau: float) -> Tensor:
    """The probabilities of one image, class by class, from angles."""
    scores = []
    for prompts in texts:
        centre = sum((v / v.norm() for v in prompts), torch.zeros_like(image))
        scores.append(cosine_similarity(image, centre, dim=0) / tau)
    shares = torch.stack(scores).exp()
    return shares / shares.sum()


def _unit(v: Tensor) -> Tensor:
    return normalize(v, dim=-1)


def _voted(
    centre: Callable[[Tensor], Tensor] = lambda g: _unit(_unit(g).mean(1)),
    shares: Callable[[Tensor, float], Tensor] = lambda c, tau: (c / tau).softmax(1),
    image: Callable[[Tensor], Tensor] = _unit,
) -> Callable[..., Tensor]:
    """prompt_ensemble with another vector of each class, or other shares of the cosines."""
    return lambda images, texts, tau: shares(image(images) @ centre(texts).T, tau)


def _each_prompt(join: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """The cosines of every prompt, (B, K, P), joined at last."""
    return lambda images, texts, tau: join(
        torch.einsum("bd,kpd->bkp", _unit(images), _unit(texts)), tau
    )


prompt_ensemble = Checker(
    chapter="text_to_image",
    name="prompt_ensemble",
    title="Classes that are told in several ways",
    kind="implementation",
    difficulty=2,
    minutes=12,
    cases=with_single(_ensemble_cases),
    mistakes=(
        Mistake(
            "the mean of unit vectors is shorter than 1. Bring it back to length 1.",
            _voted(lambda g: _unit(g).mean(1)),
        ),
        Mistake(
            "long vectors rule the mean. Bring each prompt to length 1 first.",
            _voted(lambda g: _unit(g.mean(1))),
        ),
        Mistake(
            "no text has length 1 here, neither the prompts nor their mean.",
            _voted(lambda g: g.mean(1)),
        ),
        Mistake(
            "the images are not brought to length 1.",
            _voted(image=_same),
        ),
        Mistake(
            "the softmax runs over the images. The classes compete, for each image.",
            _voted(shares=lambda c, tau: (c / tau).softmax(0)),
        ),
        Mistake(
            "the cosines are multiplied by the temperature. Divide by it.",
            _voted(shares=lambda c, tau: (c * tau).softmax(1)),
        ),
        Mistake(
            "the temperature is not used.",
            _voted(shares=lambda c, tau: c.softmax(1)),
        ),
        Mistake(
            "these are logits. Probabilities are asked for.",
            _voted(shares=lambda c, tau: c / tau),
        ),
        Mistake(
            "these are logarithms of the probabilities.",
            _voted(shares=lambda c, tau: (c / tau).log_softmax(1)),
        ),
        Mistake(
            "every prompt votes for itself, and the votes are averaged. Average the vectors: then "
            "it costs as much as one prompt.",
            _each_prompt(lambda c, tau: (c / tau).softmax(1).mean(2)),
        ),
        Mistake(
            "all prompts compete in one softmax, and their shares are added up by class.",
            _each_prompt(lambda c, tau: (c / tau).flatten(1).softmax(1).view(c.shape).sum(2)),
        ),
        Mistake(
            "only the best prompt of each class counts here.",
            _each_prompt(lambda c, tau: (c.amax(2) / tau).softmax(1)),
        ),
        Mistake(
            "only the first prompt of each class is used.",
            _voted(lambda g: _unit(g[:, 0])),
        ),
        Mistake(
            "the mean runs over the classes. It belongs to the prompts of one class.",
            _voted(lambda g: _unit(_unit(g).mean(0))),
        ),
        Mistake(
            "nothing has length 1 here, neither the texts nor the images.",
            _voted(lambda g: g.mean(1), image=_same),
        ),
        Mistake(
            "the lengths of the prompts run over the prompts of a class, the axis that "
            "`normalize` takes if you name none. A vector lies along the last axis.",
            _voted(lambda g: _unit(normalize(g, dim=1).mean(1))),
        ),
    ),
)

# 5 causal_attention

TEXTS = (
    ((2, 5, 6, 2), "two heads"),
    ((3, 4, 4, 1), "one head"),
    ((4, 4, 4, 4), "heads of one number"),
    ((2, 1, 6, 3), "a text of one word"),
)


def _causal_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for (b, n, d, heads), label in TEXTS:
        q, k, v = (draw(b, n, d) for _ in range(3))
        answers = [_spoken(*rows, heads) for rows in zip(q, k, v, strict=True)]
        yield Case(label, (q, k, v, heads), torch.stack(answers))


def _spoken(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """One text: head by head, word by word, from the words so far."""
    width = q.shape[1] // heads
    columns = []
    for part in (slice(i * width, (i + 1) * width) for i in range(heads)):
        rows = []
        for i in range(len(q)):
            shares = torch.stack([q[i, part].dot(word) for word in k[: i + 1, part]])
            shares = (shares / math.sqrt(width)).exp()
            rows.append((shares / shares.sum()) @ v[: i + 1, part])
        columns.append(torch.stack(rows))
    return torch.cat(columns, 1)


def _ahead(scores: Tensor, offset: int = 1) -> Tensor:
    """True where a word would see a later one, (N, N)."""
    return torch.ones(scores.shape[-2:]).bool().triu(offset)


def _causal(
    divide: Callable[[int, int], float] = lambda width, heads: (width // heads) ** 0.5,
    shares: Callable[[Tensor], Tensor] = lambda s: s.masked_fill(_ahead(s), -math.inf).softmax(-1),
    split: Callable[[Tensor, int], Tensor] = lambda x, h: x.unflatten(-1, (h, -1)).transpose(1, 2),
    merge: Callable[[Tensor, Tensor], Tensor] = lambda out, like: out.transpose(1, 2).flatten(2),
) -> Callable[..., Tensor]:
    """causal_attention with another divisor, other shares of the scores, or other heads."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        scores = split(q, heads) @ split(k, heads).mT / divide(q.shape[-1], heads)
        return merge(shares(scores) @ split(v, heads), q)

    return wrong


def _halves(x: Tensor, heads: int) -> Tensor:
    """The right shape by a reshape alone, which mixes words and heads."""
    return x.reshape(len(x), heads, x.shape[1], -1)


causal_attention = Checker(
    chapter="text_to_image",
    name="causal_attention",
    title="Words that see what came before",
    kind="implementation",
    difficulty=3,
    minutes=25,
    cases=with_single(_causal_cases),
    mistakes=(
        Mistake(
            "later words are seen too: nothing is masked.",
            _causal(shares=lambda s: s.softmax(-1)),
        ),
        Mistake(
            "the mask is the wrong way round: each word sees itself and what comes after.",
            _causal(shares=lambda s: s.masked_fill(_ahead(s).T, -math.inf).softmax(-1)),
        ),
        Mistake(
            "a word does not see itself, and the first sees nothing at all. Keep the diagonal.",
            _causal(shares=lambda s: s.masked_fill(_ahead(s, 0), -math.inf).softmax(-1)),
        ),
        Mistake(
            "each word sees one word too many, the next one.",
            _causal(shares=lambda s: s.masked_fill(_ahead(s, 2), -math.inf).softmax(-1)),
        ),
        Mistake(
            "the mask comes after the softmax, so that the weights no longer sum to 1.",
            _causal(shares=lambda s: s.softmax(-1) * ~_ahead(s)),
        ),
        Mistake(
            "masked scores are 0, and e^0 is 1: later words are still seen. Which score has the "
            "weight 0?",
            _causal(shares=lambda s: (s * ~_ahead(s)).softmax(-1)),
        ),
        Mistake(
            "the scores are not divided by the root of the width of a head.",
            _causal(lambda width, heads: 1.0),
        ),
        Mistake(
            "this is the root of the whole width. The sum in a score has as many terms as a head "
            "is wide.",
            _causal(lambda width, heads: width**0.5),
        ),
        Mistake(
            "the scores are divided by the width of a head. Their standard deviation is its root.",
            _causal(lambda width, heads: width // heads),
        ),
        Mistake(
            "there is one head for all. Each head has scores of its own.",
            lambda q, k, v, heads: _causal()(q, k, v, 1),
        ),
        Mistake(
            "a reshape alone mixes words and heads. Split the last axis into heads and width, then "
            "exchange axes.",
            _causal(split=_halves, merge=lambda out, like: out.reshape(like.shape)),
        ),
        Mistake(
            "the heads are split rightly, but joined by a reshape that mixes words and heads. "
            "Exchange the axes back first.",
            _causal(merge=lambda out, like: out.reshape(like.shape)),
        ),
        Mistake(
            "the softmax runs over those that ask. The weights of one word sum to 1 over those "
            "that it sees.",
            _causal(shares=lambda s: s.masked_fill(_ahead(s), -math.inf).softmax(-2)),
        ),
        Mistake(
            "queries and keys are exchanged.",
            lambda q, k, v, heads: _causal()(k, q, v, heads),
        ),
        Mistake(
            "the scores are multiplied by the root of the width of a head. Divide by it.",
            _causal(lambda width, heads: (width // heads) ** -0.5),
        ),
        Mistake(
            "the heads take turns: each has every h-th number. The first numbers, side by side, "
            "are those of head 1.",
            _causal(
                split=lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2),
                merge=lambda out, like: out.permute(0, 2, 3, 1).flatten(2),
            ),
        ),
    ),
)

# 6 drop_conditions

Conditions = tuple[Tensor, Tensor]


def _drop_cases(seed: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(seed)
    for b, n, dtype, p, label in (
        (40, 6, torch.float32, (0.5, 0.2), "forty images, single precision"),
        (5, 5, torch.float64, (0.4, 0.6), "as many images as words"),
        (30, 4, torch.float64, (0.2, 0.7), "the text more often than the label"),
        (6, 3, torch.float64, (1.0, 0.0), "the label always, the text never"),
        (6, 3, torch.float64, (0.0, 1.0), "the text always, the label never"),
    ):
        labels = torch.randint(10, (b,), generator=generator)
        ids = torch.randint(1, 9, (b, n), generator=generator)
        u = torch.rand(2, b, generator=generator, dtype=dtype)
        yield _drop_case(label, labels, ids, u, p, 10)
    labels, ids = torch.arange(8) % 5, torch.randint(1, 9, (8, 4), generator=generator)
    u = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    yield _drop_case("five classes, so that none is 5", labels, ids, u, (0.6, 0.5), 5)
    edges = torch.tensor([[0.0, 0.5, 0.5, 0.25, 0.75], [0.0, 0.25, 0.0, 0.25, 0.125]]).double()
    yield _drop_case(
        "numbers at the probability itself", labels[:5], ids[:5], edges, (0.5, 0.25), 10
    )


def _drop_case(
    label: str, labels: Tensor, ids: Tensor, u: Tensor, p: tuple[float, float], none: int
) -> Case:
    answer = _dropped_one_by_one(labels, ids, u, *p, none)
    return Case(label, (labels, ids, u, *p, none), answer)


def _dropped_one_by_one(
    labels: Tensor, ids: Tensor, u: Tensor, p_label: float, p_text: float, none: int
) -> Conditions:
    kept, texts = labels.tolist(), ids.tolist()
    for i, (first, second) in enumerate(u.T.tolist()):
        kept[i] = none if first < p_label else kept[i]
        texts[i] = [0] * len(texts[i]) if second < p_text else texts[i]
    return torch.tensor(kept), torch.tensor(texts)


def _coins(u: Tensor, p_label: float, p_text: float) -> tuple[Tensor, Tensor]:
    return u[0] < p_label, u[1] < p_text


def _dropped(
    coins: Callable[..., tuple[Tensor, Tensor]] = _coins,
    no_label: Callable[[int], int] = lambda none: none,
    text: Callable[..., Tensor] = lambda gone, ids, none: torch.where(gone[:, None], 0, ids),
) -> Callable[..., Conditions]:
    """drop_conditions with other coins, another label that means none, or another empty text."""

    def wrong(
        labels: Tensor, ids: Tensor, u: Tensor, p_label: float, p_text: float, none: int
    ) -> Conditions:
        a, b = coins(u, p_label, p_text)
        return torch.where(a, no_label(none), labels), text(b, ids, none)

    return wrong


drop_conditions = Checker(
    chapter="text_to_image",
    name="drop_conditions",
    title="Spot the bug: two conditions, one coin",
    kind="bug",
    difficulty=1,
    minutes=10,
    cases=_drop_cases,
    mistakes=(
        Mistake(
            "this is still the code with both bugs.",
            _dropped(lambda u, p, q: (u[0] < p, u[0] < q), lambda none: 0),
        ),
        Mistake(
            "one of two bugs is left: both conditions hang on the same coin, so of two equally "
            "frequent ones none is ever dropped alone.",
            _dropped(lambda u, p, q: (u[0] < p, u[0] < q)),
        ),
        Mistake(
            "one of two bugs is left: the dropped label becomes 0, and 0 is a digit.",
            _dropped(no_label=lambda none: 0),
        ),
        Mistake(
            "the two coins are exchanged: the first row is for the label.",
            _dropped(lambda u, p, q: (u[1] < p, u[0] < q)),
        ),
        Mistake(
            "the two probabilities are exchanged.",
            _dropped(lambda u, p, q: (u[0] < q, u[1] < p)),
        ),
        Mistake(
            "what should be dropped is kept, and what should be kept is dropped.",
            _dropped(lambda u, p, q: (u[0] >= p, u[1] >= q)),
        ),
        Mistake(
            "one coin decides for the whole batch. Each image has its own.",
            _dropped(
                lambda u, p, q: ((u[0, :1] < p).expand(len(u[0])), (u[1, :1] < q).expand(len(u[1])))
            ),
        ),
        Mistake(
            "if one condition is dropped, so is the other here. A model must learn each alone.",
            _dropped(lambda u, p, q: 2 * ((u[0] < p) | (u[1] < q),)),
        ),
        Mistake(
            "conditions are dropped together only. A model must learn each alone.",
            _dropped(lambda u, p, q: 2 * ((u[0] < p) & (u[1] < q),)),
        ),
        Mistake(
            "the mark of the begin is left of a dropped text. No text is padding alone.",
            _dropped(
                text=lambda gone, ids, none: torch.where(
                    gone[:, None] & (torch.arange(ids.shape[1]) > 0), 0, ids
                )
            ),
        ),
        Mistake(
            "a dropped text is filled with the number that means no label. Of words 0 is padding.",
            _dropped(text=lambda gone, ids, none: torch.where(gone[:, None], none, ids)),
        ),
        Mistake(
            "the text is never dropped.",
            _dropped(text=lambda gone, ids, none: ids.clone()),
        ),
        Mistake(
            "the coins of shape (B,) met the axis of the words. They belong to the images.",
            _dropped(text=lambda gone, ids, none: torch.where(gone, 0, ids)),
        ),
        Mistake(
            "the number 10 is written out. Which label means none is an argument, and depends on "
            "how many classes there are.",
            _dropped(no_label=lambda none: 10),
        ),
        Mistake(
            "a number equal to the probability is no longer below it. Else something would be "
            "dropped now and then at probability 0.",
            _dropped(lambda u, p, q: (u[0] <= p, u[1] <= q)),
        ),
    ),
)

# 7 two_wishes

STATES = (
    ((4, 1, 8, 8), torch.float32, "a batch of images, single precision"),
    ((3, 3), torch.float64, "as many samples as coordinates"),
    ((5,), torch.float64, "samples that are single numbers"),
)


def _wish_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (shape, dtype, label) in enumerate(STATES):
        none, pos, neg = (draw(*shape).to(dtype) for _ in range(3))
        s, w = (2.0, 1.5, 4.0)[i] + 0.25 * seed, (0.5, 0.8, 1.3)[i]
        right = torch.lerp(none, pos, s) + torch.lerp(none, neg, -w) - none
        yield Case(f"scales {s:g} and {w:g}; {label}", (none, pos, neg, s, w), right)
    same = draw(3, 2)
    yield Case("all three are the same", (same, same.clone(), same.clone(), 2.0, 0.5), same.clone())
    none, pos, neg = (draw(3, 2) for _ in range(3))
    yield Case("nothing to avoid", (none, pos, neg, 1.0, 0.0), pos.clone())


two_wishes = Checker(
    chapter="text_to_image",
    name="two_wishes",
    title="Spot the bug: one thing, and not another",
    kind="bug",
    difficulty=1,
    minutes=12,
    cases=_wish_cases,
    mistakes=(
        Mistake(
            "this is still the formula with the bug. What comes out if all three are the same?",
            lambda o, p, n, s, w: o + s * (p - o) - w * n,
        ),
        Mistake(
            "this is the formula that circulates, with weights s and -w. They must sum to one.",
            lambda o, p, n, s, w: s * p - w * n,
        ),
        Mistake(
            "this leads away from the negative prompt to the positive one. Here each is compared "
            "with no prompt at all, and each has a scale of its own.",
            lambda o, p, n, s, w: n + s * (p - n),
        ),
        Mistake(
            "the sign of the second wish is turned: what should be avoided is asked for.",
            lambda o, p, n, s, w: o + s * (p - o) + w * (n - o),
        ),
        Mistake(
            "the negative prompt is compared with the positive one. Compare it with no prompt.",
            lambda o, p, n, s, w: o + s * (p - o) - w * (n - p),
        ),
        Mistake(
            "the weights sum to zero: the prediction without a prompt must be added.",
            lambda o, p, n, s, w: s * (p - o) - w * (n - o),
        ),
        Mistake(
            "the sum begins at the positive prompt, which then counts s + 1 times. Begin at no "
            "prompt.",
            lambda o, p, n, s, w: p + s * (p - o) - w * (n - o),
        ),
        Mistake(
            "the two prompts are exchanged.",
            lambda o, p, n, s, w: o + s * (n - o) - w * (p - o),
        ),
        Mistake(
            "the two scales are exchanged.",
            lambda o, p, n, s, w: o + w * (p - o) - s * (n - o),
        ),
        Mistake(
            "what should be avoided is not used.",
            lambda o, p, n, s, w: o + s * (p - o),
        ),
        Mistake(
            "the first scale multiplies both wishes. Each has its own.",
            lambda o, p, n, s, w: o + s * ((p - o) - w * (n - o)),
        ),
        Mistake(
            "the sum is divided by its weights s and -w. They then sum to one, but where they are "
            "equal you divide by 0, and no prompt has no say.",
            lambda o, p, n, s, w: (s * p - w * n) / (s - w),
        ),
        Mistake(
            "the sum of the code with the bug is divided by its weights. They then sum to one, but "
            "what is wanted is scaled up too, and at w = 1 you divide by 0.",
            lambda o, p, n, s, w: (o + s * (p - o) - w * n) / (1 - w),
        ),
        Mistake(
            "the weight of no prompt was moved the wrong way: the weights sum to one minus twice "
            "the second scale.",
            lambda o, p, n, s, w: (1 - s - w) * o + s * p - w * n,
        ),
    ),
)

# 8 measured_slant

PICTURES = (
    ((3, 1, 6, 6), torch.float32, "three images, single precision"),
    ((2, 1, 5, 8), torch.float64, "images that are no squares"),
    ((4, 1, 4, 4), torch.float64, "as many images as rows"),
)


def _slant_cases(seed: int) -> Iterator[Case]:
    """Any grey values; and two strokes whose slant is known."""
    draw = normal(seed)
    for shape, dtype, label in PICTURES:
        images = torch.tanh(draw(*shape) - 0.5)
        yield Case(label, (images.to(dtype),), _from_pairs(images).to(dtype))
    strokes = torch.full((2, 1, 9, 9), -1.0, dtype=torch.float64)
    at = torch.arange(9)
    strokes[0, 0, at, 8 - at] = 1
    strokes[1, 0, 2:7, 3] = 1
    answer = torch.tensor([1.0, 0.0]).double()
    yield Case("a diagonal from lower left to upper right, and an upright", (strokes,), answer)


def _from_pairs(images: Tensor) -> Tensor:
    """Covariance over variance by all pairs of pixels, which needs no mean."""
    height, width = images.shape[2:]
    y, x = (v.flatten().double() for v in torch.meshgrid(
        -torch.arange(height), torch.arange(width), indexing="ij"))  # fmt: skip
    found = []
    for ink in (images.double().flatten(1) + 1) / 2:
        both = ink[:, None] * ink
        dx, dy = x[:, None] - x, y[:, None] - y
        found.append((both * dx * dy).sum() / (both * dy**2).sum())
    return torch.stack(found)


Moments = tuple[Tensor, Tensor, Tensor]


def _moments(u: Tensor, centred: bool = True, start: float = 0.0) -> Moments:
    """Variances of x and of y, which counts downwards, and their covariance, each (B,).

    Coordinates begin at ``start`` times the size, which matters if they are not centred.
    """
    height, width = u.shape[1:]
    x, y = (torch.arange(n).to(u) + start * (n - 1) for n in (width, height))
    y = y[:, None]

    def mean(values: Tensor) -> Tensor:
        return (u * values).sum((1, 2)) / u.sum((1, 2))

    mx, my = (mean(v) * centred for v in (x, y))
    return mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my


def _slanted(
    result: Callable[..., Tensor] = lambda vx, vy, cov: -cov / vy,
    ink: Callable[[Tensor], Tensor] = lambda x: (x[:, 0] + 1) / 2,
    centred: bool = True,
    start: float = 0.0,
) -> Callable[[Tensor], Tensor]:
    """measured_slant with another result of the moments, another ink, or another centre."""
    return lambda images: result(*_moments(ink(images), centred, start))


measured_slant = Checker(
    chapter="text_to_image",
    name="measured_slant",
    title="How much does it lean?",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_slant_cases,
    mistakes=(
        Mistake(
            "the sign is turned: rows count downwards, and the slant is a step to the right for "
            "each step up.",
            _slanted(lambda vx, vy, cov: cov / vy),
        ),
        Mistake(
            "the covariance is divided by the variance of x. How far does x move for a step in y?",
            _slanted(lambda vx, vy, cov: -cov / vx),
        ),
        Mistake(
            "this is the correlation, which also depends on how wide the digit is.",
            _slanted(lambda vx, vy, cov: -cov / (vx * vy).sqrt()),
        ),
        Mistake(
            "the means are not taken away: a digit leans more the farther it stands from the "
            "corner.",
            _slanted(centred=False),
        ),
        Mistake(
            "the pixels weigh from -1 to 1, so that the background counts, and negatively. Ink is "
            "from 0 to 1.",
            _slanted(ink=lambda x: x[:, 0]),
        ),
        Mistake(
            "the covariance is divided by a standard deviation. Divide by the variance.",
            _slanted(lambda vx, vy, cov: -cov / vy.sqrt()),
        ),
        Mistake(
            "this is the covariance alone. It grows with the size of the digit.",
            _slanted(lambda vx, vy, cov: -cov),
        ),
        Mistake(
            "this is the angle. Its tangent is asked for.",
            _slanted(lambda vx, vy, cov: torch.atan(-cov / vy)),
        ),
        Mistake(
            "this is the angle in degrees. Its tangent is asked for.",
            _slanted(lambda vx, vy, cov: torch.rad2deg(torch.atan(-cov / vy))),
        ),
        Mistake(
            "this is the direction of the longest axis. A wide digit has one that does not lean.",
            _slanted(lambda vx, vy, cov: torch.tan(torch.atan2(-2 * cov, vy - vx) / 2)),
        ),
        Mistake(
            "the ink was made black and white. Its grey values count.",
            _slanted(ink=lambda x: (x[:, 0] > 0).to(x)),
        ),
        Mistake(
            "the moments are those of the whole batch. Each image has its own.",
            lambda images: (
                _slanted()(images.add(1).sum(0, keepdim=True).sub(1)).expand(len(images)).clone()
            ),
        ),
        Mistake(
            "the means are those of all pixels alike, the middle of the image. The digit need not "
            "stand there: weigh them with the ink.",
            _slanted(centred=False, start=-0.5),
        ),
        Mistake(
            "light and dark are exchanged: the background counts as ink.",
            _slanted(ink=lambda x: (1 - x[:, 0]) / 2),
        ),
    ),
)

# 9 following_experiment

CHANGES = ("less", "same", "more")
SCALES = (0.0, 1.0, 2.0, 4.0)
WISHES = ("a bold, large seven leaning right", "a small and narrow zero leaning left")
DRAWN, WALK = 16, 6

Following = tuple[str, dict[str, Tensor]]


@functools.cache
def _drawn(prompt: str, scale: float) -> Tensor:
    """Images of one prompt; drawn once, for it takes a second."""
    model: Any = load_pretrained("mnist-text")
    guided = ClassifierFreeGuidance(model, scale)
    options: dict[str, Any] = {"cond": [prompt] * DRAWN, "steps": WALK, "seed": 0}
    return sample(guided, (DRAWN, 1, 32, 32), **options).clamp(-1, 1)


class _Prompt:
    """A prompt of which one can draw, and that can be held against images."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def draw(self, scale: float) -> Tensor:
        """Images (B, 1, 32, 32) at a guidance scale."""
        if float(scale) not in SCALES:
            raise ValueError(f"draw wants one of the scales {SCALES}; got {scale}")
        return _drawn(self.prompt, float(scale)).clone()

    def told(self, images: Tensor) -> Tensor:
        """What the images have of what is asked, (B, 4)."""
        return follows(images, [self.prompt] * len(images))


def _following_cases(seed: int) -> Iterator[Case]:
    for prompt in WISHES:
        wish = _Prompt(prompt)
        following, variety = [], []
        for scale in SCALES:
            images = wish.draw(scale)
            done = [all(v != 0 for v in row) for row in wish.told(images).tolist()]
            following.append(sum(done) / len(done))
            pixels = images.double().flatten(1)
            gaps = pixels - pixels.mean(0)
            variety.append(gaps.square().mean(0).sqrt().mean().item())
        measured = {"following": torch.tensor(following), "variety": torch.tensor(variety)}
        answer = (frozenset(CHANGES), measured)
        yield Case(f'"{prompt}"', (wish.draw, wish.told, SCALES), answer)


def _all_asked(told: Tensor) -> Tensor:
    return ((told == 1) | told.isnan()).all(1).float().mean()


def _spread(x: Tensor) -> Tensor:
    return x.std(0, correction=0).mean()


def _measured(
    done: Callable[[Tensor], Tensor] = _all_asked,
    spread: Callable[[Tensor], Tensor] = _spread,
    scale: Callable[[float], float] = lambda s: s,
) -> Callable[..., Following]:
    """following_experiment with another share, another spread, or other scales."""

    def wrong(draw: Any, told: Any, scales: tuple[float, ...]) -> Following:
        sets = [draw(scale(s)) for s in scales]
        following = torch.stack([done(told(images)) for images in sets])
        return CHANGES[0], {"following": following, "variety": torch.stack(list(map(spread, sets)))}

    return wrong


def _following_remark(value: Following) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    share, spread = measured["following"].tolist(), measured["variety"].tolist()
    verb = foretold(prediction, "less")
    return (
        f"of {DRAWN} images {share[1]:.0%} do all that is asked at scale 1, and {share[3]:.0%} at "
        f"scale 4. Their pixels vary less ({verb}): by {spread[3]:.2f} instead of {spread[1]:.2f}."
    )


following_experiment = Checker(
    chapter="text_to_image",
    name="following_experiment",
    title="What does obedience cost?",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_following_cases,
    mistakes=(
        Mistake(
            "what is not asked for counts as missed. It is NaN, and must not count at all.",
            _measured(lambda told: (told == 1).all(1).float().mean()),
        ),
        Mistake(
            "the shares are NaN, because the mean of what is not asked for is.",
            _measured(lambda told: told.mean()),
        ),
        Mistake(
            "this is the share of the attributes. An image counts if it does all that is asked.",
            _measured(lambda told: told.nanmean()),
        ),
        Mistake(
            "this is the share of the attributes, those counted that nobody asked for.",
            _measured(lambda told: told.nan_to_num(0).mean()),
        ),
        Mistake(
            "an image counts here if it does anything of what is asked. It must do all.",
            _measured(lambda told: (told == 1).any(1).float().mean()),
        ),
        Mistake(
            "this is the number of images. Their share is asked for.",
            _measured(lambda told: _all_asked(told) * len(told)),
        ),
        Mistake(
            "this is the share of the images that do not obey.",
            _measured(lambda told: 1 - _all_asked(told)),
        ),
        Mistake(
            "this is how much the pixels of an image differ from each other. How much does a pixel "
            "differ from image to image?",
            _measured(spread=lambda x: x.flatten(1).std(1, correction=0).mean()),
        ),
        Mistake(
            "images and pixels are mixed up in one standard deviation. Take it for each pixel, "
            "over the images.",
            _measured(spread=lambda x: x.std(correction=0)),
        ),
        Mistake(
            "the standard deviation divides by B - 1 here. Divide by B.",
            _measured(spread=lambda x: x.std(0).mean()),
        ),
        Mistake(
            "these are variances. Standard deviations are asked for.",
            _measured(spread=lambda x: x.var(0, correction=0).mean()),
        ),
        Mistake(
            "the root is taken at the end, of the mean variance. Take it for each pixel.",
            _measured(spread=lambda x: x.var(0, correction=0).mean().sqrt()),
        ),
        Mistake(
            "only one scale was tried: all values are those of the first.",
            _measured(scale=lambda s: SCALES[0]),
        ),
        Mistake(
            "the scales came in the reverse order.",
            _measured(scale=lambda s: SCALES[::-1][SCALES.index(s)]),
        ),
    ),
    remark=_following_remark,
)

CHECKERS = (
    cosine_matrix,
    contrastive_loss,
    loss_floor,
    prompt_ensemble,
    causal_attention,
    drop_conditions,
    two_wishes,
    measured_slant,
    following_experiment,
)
