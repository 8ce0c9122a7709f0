"""CLIP: InfoNCE by hand, its value, gradient and optimum in closed form; the encoders' promises."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from course_lib.data import VOCABULARY, tokenize
from course_lib.nets import CLIP, ContrastiveLoss, TextEncoder, info_nce
from course_lib.nets.clip import one_caption


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)
    nn.init.normal_(encoder.word.weight)
    return CLIP(encoder, image_size=16, width=4, dim=6, temperature=0.2).double()


def by_hand(images, texts, tau):
    """Sums in Python, pair by pair."""
    f, g = ([[v / math.hypot(*row) for v in row] for row in e.tolist()] for e in (images, texts))
    n = len(f)
    cosine = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in g] for x in f]
    rows = [math.log(sum(math.exp(c / tau) for c in cosine[i])) for i in range(n)]
    columns = [math.log(sum(math.exp(cosine[j][i] / tau) for j in range(n))) for i in range(n)]
    own = [cosine[i][i] / tau for i in range(n)]
    return sum(r + c - 2 * o for r, c, o in zip(rows, columns, own, strict=True)) / (2 * n)


@pytest.mark.parametrize(("n", "tau"), [(2, 0.07), (5, 0.3), (8, 1.0)])
def test_info_nce_by_hand(n, tau):
    images, texts = draws(n, 4), draws(n, 4, seed=1)
    assert info_nce(images, texts, tau).item() == pytest.approx(by_hand(images, texts, tau))
    # Lengths do not matter, and the two sides are treated alike.
    stretched = images * torch.arange(1, n + 1)[:, None]
    assert info_nce(stretched, 3 * texts, tau).item() == pytest.approx(by_hand(images, texts, tau))
    assert info_nce(texts, images, tau).item() == pytest.approx(by_hand(images, texts, tau))


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_guessing_costs_log_n(n):
    """All embeddings are the same: all cosines are."""
    same = draws(1, 4).expand(n, 4)
    assert info_nce(same, same, 0.05).item() == pytest.approx(math.log(n), abs=1e-12)
    assert info_nce(same, draws(1, 4, seed=1).expand(n, 4)).item() == pytest.approx(math.log(n))


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_orthogonal_pairs(tau):
    """Cosines are 1 for what belongs together and 0 for all else."""
    eye = torch.eye(6, dtype=torch.float64)
    expected = math.log1p(5 * math.exp(-1 / tau))
    assert info_nce(eye, eye, tau).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_in_the_cosines_is_probability_minus_truth():
    """d loss / d logit_ij = (row softmax + column softmax - 2 [i = j]) / 2N, for unit vectors."""
    texts = torch.eye(5, dtype=torch.float64)  # so that an image's entries are its cosines
    images = normalize(draws(5, 5), dim=1).requires_grad_()
    (found,) = torch.autograd.grad(info_nce(images, texts, 0.3), images)
    x = images.detach()
    logits = x / 0.3
    wanted = (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(5)) / (2 * 5 * 0.3)
    # Normalising takes away the part along the vector.
    tangent = wanted - (wanted * x).sum(1, keepdim=True) * x
    torch.testing.assert_close(found, tangent, rtol=1e-10, atol=1e-12)


def test_the_temperature_has_a_gradient():
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    images, texts = draws(4, 3), draws(4, 3, seed=1)
    (found,) = torch.autograd.grad(info_nce(images, texts, tau), tau)
    step = 1e-6
    ahead, behind = (info_nce(images, texts, 0.3 + s).item() for s in (step, -step))
    assert found.item() == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)


def soft(images, texts, tau, positives):
    """Each pair that belongs together has its share of its row and of its column."""
    logits = normalize(images, dim=1) @ normalize(texts, dim=1).mT / tau
    total = 0.0
    for table, belongs in ((logits, positives), (logits.mT, positives.mT)):
        for row, own in zip(table, belongs, strict=True):
            total -= row.log_softmax(0)[own].mean() / (2 * len(logits))
    return total


def test_positives_share_the_target():
    images, texts = draws(5, 3), draws(5, 3, seed=1)
    same = torch.eye(5, dtype=torch.bool)
    plain = info_nce(images, texts, 0.2)
    torch.testing.assert_close(info_nce(images, texts, 0.2, same), plain, rtol=1e-12, atol=0)
    same[0, 3] = same[3, 0] = same[1, 2] = True  # and one that holds in one direction only
    found = info_nce(images, texts, 0.2, same)
    torch.testing.assert_close(found, soft(images, texts, 0.2, same), rtol=1e-12, atol=0)
    assert abs(found - plain) > 1e-2


def test_for_equal_texts_sharing_changes_nothing():
    """Equal texts have equal logits, so any split of the target gives the same loss."""
    images, texts = draws(6, 3), draws(6, 3, seed=1)
    texts[4] = texts[1]
    same = torch.eye(6, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    shared, plain = info_nce(images, texts, 0.1, same), info_nce(images, texts, 0.1)
    torch.testing.assert_close(shared, plain, rtol=1e-12, atol=0)


JOINT = torch.tensor([[0.2, 0.05, 0.1], [0.02, 0.25, 0.06], [0.08, 0.04, 0.2]]).double()


def pairs(n):
    """All batches of n pairs of kinds, and how likely each is."""
    kinds = list(itertools.product(range(3), repeat=2))
    for batch in itertools.product(kinds, repeat=n):
        yield torch.tensor(batch).mT, math.prod(JOINT[i, j].item() for i, j in batch)


def exact_loss(images, tau, n):
    """The expected loss of batches of n: all of them, none drawn. Of each kind one embedding.

    The texts' embeddings are the unit vectors, so `images` is a table of all cosines.
    """
    batches, chances = zip(*pairs(n), strict=True)
    index = torch.stack(batches)
    logits = images[index[:, 0]].gather(
        2, index[:, 1][:, None].expand(-1, n, -1)
    )  # batch, image, text
    own = logits.diagonal(dim1=1, dim2=2) / tau
    both = (logits / tau).logsumexp(2) + (logits / tau).logsumexp(1) - 2 * own
    return (both.mean(1) / 2) @ torch.tensor(chances, dtype=torch.float64)


def test_the_exact_loss_is_info_nce():
    """The sum over all batches, by `info_nce` itself, for batches of two."""
    table = normalize(draws(3, 3), dim=1)
    eye = torch.eye(3, dtype=torch.float64)
    total = sum(chance * info_nce(table[i], eye[j], 0.4) for (i, j), chance in pairs(2))
    torch.testing.assert_close(total, exact_loss(table, 0.4, 2), rtol=1e-10, atol=0)


def test_the_optimum_is_the_pointwise_mutual_information():
    """By descent on the expected loss over free tables: log p(x, c) / (p(x) p(c)) plus a constant.

    Encoders whose cosines are this over tau therefore cannot be bettered.
    """
    information = (JOINT / (JOINT.sum(1, keepdim=True) * JOINT.sum(0))).log()
    table = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [table], max_iter=60, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = exact_loss(table, 1.0, 3)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = table.detach() - table.detach().mean()
    torch.testing.assert_close(found, information - information.mean(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_log_n_minus_the_loss_bounds_the_mutual_information(n):
    """At the optimum from below, and the gap shrinks as n grows (van den Oord et al. 2018)."""
    information = (JOINT / (JOINT.sum(1, keepdim=True) * JOINT.sum(0))).log()
    known = (JOINT * information).sum()
    bound = math.log(n) - exact_loss(information, 1.0, n)
    assert 0 < bound < known
    if n > 2:
        assert bound > math.log(2) - exact_loss(information, 1.0, 2)


def test_embeddings_are_unit_vectors_and_the_logits_cosines(clip):
    images, ids = draws(5, 1, 16, 16).clamp(-1, 1), tokenize(["a one", "a bold 7", "9"])[0]
    f, g = clip.embed_images(images), clip.embed_texts(ids)
    assert f.shape == (5, 6)
    for e in (f, g):
        torch.testing.assert_close(e.norm(dim=1), torch.ones(len(e)).double(), rtol=1e-12, atol=0)
    logits = clip(images, ids)
    assert logits.shape == (5, 3)
    for i, j in itertools.product(range(5), range(3)):
        wanted = torch.cosine_similarity(f[i], g[j], dim=0) / 0.2
        torch.testing.assert_close(logits[i, j], wanted, rtol=1e-6, atol=0)


def test_samples_do_not_see_each_other(clip):
    images, ids = draws(4, 1, 16, 16), tokenize(["a one", "a bold 7", "9", "tiny: a digit"])[0]
    for i in range(4):
        one = clip.embed_images(images[i : i + 1]), clip.embed_texts(ids[i : i + 1])
        torch.testing.assert_close(one[0][0], clip.embed_images(images)[i], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(one[1][0], clip.embed_texts(ids)[i], rtol=1e-9, atol=1e-11)


def test_the_temperature_begins_as_asked_and_stays_above_a_hundredth(clip):
    assert clip.temperature.item() == pytest.approx(0.2)
    with torch.no_grad():
        clip.log_scale.fill_(50.0)
    assert clip.temperature.item() == pytest.approx(0.01)


def test_the_loss_of_a_batch_is_info_nce_with_equal_captions_shared(clip):
    images = draws(4, 1, 16, 16).clamp(-1, 1)
    ids = tokenize(["a one", "a bold 7", "a one", "9"])[0][:, None]  # one caption each
    found = ContrastiveLoss(shift=0)(clip, images, (torch.zeros(4), ids))
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    embedded = clip.embed_images(images), clip.embed_texts(ids[:, 0])
    torch.testing.assert_close(
        found, soft(*embedded, clip.temperature, same), rtol=1e-9, atol=1e-11
    )


def test_images_are_moved_each_by_its_own_step():
    """A point lands on each place of the square as often, and what leaves is background."""
    point = torch.full((3000, 1, 7, 9), -1.0)
    point[:, :, 3, 4] = 1
    moved = ContrastiveLoss(shift=2)._moved(point, seeded(0))
    assert moved.shape == point.shape
    counts = ((moved + 1) / 2).sum((0, 1))
    assert counts.sum() == 3000
    inside = counts[1:6, 2:7]
    assert inside.sum() == 3000
    assert (inside - 120).abs().max() < 4.5 * math.sqrt(120)
    corner = torch.full((200, 1, 7, 9), -1.0)
    corner[:, :, 0, 0] = 1
    moved = ContrastiveLoss(shift=2)._moved(corner, seeded(0))
    gone = (moved == -1).flatten(1).all(1).double().mean()
    assert gone == pytest.approx(16 / 25, abs=0.12)  # unless it moves down or stays, and right
    assert torch.equal(ContrastiveLoss(0)._moved(point, seeded(0)), point)


def test_one_of_the_captions_is_drawn():
    ids = torch.arange(4000 * 3).reshape(4000, 3, 1)
    chosen = one_caption(ids, seeded(0))
    assert (chosen[:, 0] // 3 == torch.arange(4000)).all()
    shares = one_hot(chosen[:, 0] % 3).double().mean(0)
    assert (shares - 1 / 3).abs().max() < 0.03
    assert torch.equal(chosen, one_caption(ids, seeded(0)))
    assert not torch.equal(chosen, one_caption(ids, seeded(1)))


def test_the_loss_is_seeded_and_trains(clip):
    images = draws(8, 1, 16, 16).clamp(-1, 1)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    ids = tokenize([f"{a} {w}" for w in words for a in ("a", "the")])[0].unflatten(0, (8, 2))
    state = torch.get_rng_state()
    losses = [ContrastiveLoss()(clip, images, (None, ids), generator=seeded(s)) for s in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)
    optimizer = torch.optim.Adam(clip.parameters(), lr=2e-2)
    for step in range(80):
        loss = ContrastiveLoss(shift=0)(clip, images, (None, ids), generator=seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 < math.log(8) / 2 < losses[0]
    assert clip(images, ids[:, 1]).argmax(1).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: info_nce(torch.zeros(3, 2), torch.zeros(4, 2)),
            r"images and texts must have the same shape \(B, D\), got \(3, 2\) and \(4, 2\)",
        ),
        (lambda: info_nce(torch.zeros(3), torch.zeros(3)), r"got \(3,\) and \(3,\)"),
        (
            lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), 0.1, torch.ones(3, dtype=bool)),
            r"positives must have shape \(3, 3\), got \(3,\)",
        ),
        (lambda: CLIP(TextEncoder(9), image_size=30), "image_size must be a multiple of 8, got 30"),
        (lambda: CLIP(TextEncoder(9), image_size=0), "image_size must be a multiple of 8, got 0"),
        (
            lambda: CLIP(TextEncoder(9)).embed_images(torch.zeros(2, 1, 28, 28)),
            r"images must be \(B, 1, 32, 32\), got \(2, 1, 28, 28\)",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
