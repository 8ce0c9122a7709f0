"""The text encoder against its formula, and what its causal attention promises."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from course_lib.data import VOCABULARY, tokenize
from course_lib.nets import TextEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    made = TextEncoder(len(VOCABULARY), dim=12, depth=2, heads=3).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def normed(norm, x):
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def attended(attention, x):
    """One text, one head and one word at a time; each word looks at itself and those before."""
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    width = x.shape[1] // attention.heads
    rows = []
    for i in range(len(x)):
        parts = []
        for head in range(attention.heads):
            part = slice(head * width, (head + 1) * width)
            weights = torch.softmax(k[: i + 1, part] @ q[i, part] / math.sqrt(width), 0)
            parts.append(weights @ v[: i + 1, part])
        rows.append(torch.cat(parts))
    return attention.out(torch.stack(rows))


def test_it_is_the_formula_of_a_transformer(encoder):
    ids, mask = tokenize(["a bold seven leaning left", "eight"], length=9)
    tokens, known = encoder(ids)
    assert torch.equal(mask, known)
    for row, found in zip(ids, tokens, strict=True):
        x = encoder.word.weight[row] + encoder.position[:9]
        for block in encoder.blocks:
            x = x + attended(block.attention, normed(block.norm1, x))
            first, _, second = block.mlp
            x = x + second(gelu(first(normed(block.norm2, x))))
        close(found, normed(encoder.norm, x))


def test_padding_changes_nothing(encoder):
    """Neither how much of it there is, nor what else is in the batch."""
    short, long = (tokenize("a tiny 4", length=n)[0] for n in (5, 20))
    close(encoder(long)[0][:, :5], encoder(short)[0])
    close(encoder.pooled(long), encoder.pooled(short))
    batch = tokenize(["a tiny 4", "huge and slim: a thin four, leaning to the left"])[0]
    close(encoder.pooled(batch)[:1], encoder.pooled(short))


@pytest.mark.parametrize("place", range(1, 6))
def test_a_word_changes_itself_and_what_stands_behind_it(encoder, place):
    ids = tokenize("a bold seven leaning left", length=7)[0]
    other = ids.clone()
    other[0, place] = VOCABULARY.index("numeral")
    difference = (encoder(ids)[0] - encoder(other)[0]).abs().amax((0, 2))
    assert (difference[:place] == 0).all()
    assert (difference[place:] > 1e-4).all()


def test_order_matters(encoder):
    one, two = (tokenize(t)[0] for t in ("bold seven", "seven bold"))
    assert (encoder.pooled(one) - encoder.pooled(two)).abs().max() > 1e-2


def test_the_pooled_vector_is_the_last_token(encoder):
    ids, mask = tokenize(["a bold seven", "7", None])
    tokens, _ = encoder(ids)
    pooled = encoder.pooled(ids)
    for i, last in enumerate((4, 2, 0)):  # of no text it is that of padding
        assert torch.equal(pooled[i], tokens[i, last])
    assert mask.sum(1).tolist() == [5, 3, 0]


def test_gradients_reach_every_word_that_is_used_and_no_other(encoder):
    ids = tokenize("a bold seven", length=5)[0]
    encoder.pooled(ids).sum().backward()
    used = encoder.word.weight.grad.abs().sum(1) > 0
    assert set(used.nonzero()[:, 0].tolist()) == set(ids[0].tolist())


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        (torch.zeros(2, 21).long(), r"\(2, 21\) torch.int64"),
        (torch.zeros(20).long(), r"\(20,\) torch.int64"),
        (torch.zeros(2, 20), r"\(2, 20\) torch.float32"),
    ],
)
def test_what_does_not_fit(encoder, ids, got):
    with pytest.raises(ValueError, match=r"ids must be int64 of shape \(B, N\), N at most 20; got"):
        encoder(ids)
    with pytest.raises(ValueError, match=got):
        encoder.pooled(ids)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide the width 12, got 5"):
        TextEncoder(9, dim=12, heads=5)
