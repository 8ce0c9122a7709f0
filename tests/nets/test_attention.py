import math

import pytest
import torch

from course_lib.nets import CrossAttention, SelfAttention


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(q, k, v, heads):
    """Attention of one sample, one head at a time."""
    width = q.shape[1] // heads
    parts = []
    for h in range(heads):
        head = slice(h * width, (h + 1) * width)
        weights = (q[:, head] @ k[:, head].T / math.sqrt(width)).softmax(-1)
        parts.append(weights @ v[:, head])
    return torch.cat(parts, dim=1)


def test_self_attention_is_the_formula():
    net, x = SelfAttention(12, heads=3).double(), randn(2, 5, 12)
    for sample, got in zip(x, net(x), strict=True):
        q, k, v = net.qkv(sample).chunk(3, dim=-1)
        torch.testing.assert_close(got, net.out(written_out(q, k, v, 3)), rtol=1e-10, atol=1e-12)


def test_cross_attention_is_the_formula_over_the_kept_tokens():
    net, x, tokens = CrossAttention(12, 7, heads=2).double(), randn(2, 5, 12), randn(2, 4, 7)
    torch.nn.init.eye_(net.out.weight)
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    got = net(x, (tokens, mask))
    for i in range(2):
        k, v = net.key_value(tokens[i][mask[i]]).chunk(2, dim=-1)
        want = written_out(net.query(x[i]), k, v, 2)
        torch.testing.assert_close(got[i], want, rtol=1e-10, atol=1e-12)


def test_cross_attention_is_zero_at_initialisation():
    net, mask = CrossAttention(12, 7, heads=2).double(), torch.ones(2, 4, dtype=torch.bool)
    assert net(randn(2, 5, 12), (randn(2, 4, 7), mask)).abs().max() == 0


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_width(heads):
    for build in (lambda: SelfAttention(12, heads), lambda: CrossAttention(12, 7, heads)):
        with pytest.raises(ValueError, match=f"heads must divide the width 12, got {heads}"):
            build()


def test_causal_attention_sees_what_came_before():
    net, x = SelfAttention(12, heads=3, causal=True).double(), randn(2, 5, 12)
    for n in range(1, 6):  # the last position of a shorter sequence, where all are before it
        whole = SelfAttention(12, heads=3).double()
        whole.load_state_dict(net.state_dict())
        torch.testing.assert_close(net(x)[:, n - 1], whole(x[:, :n])[:, -1])


def test_one_position_a_call_gives_what_all_at_once_give():
    net, x, seen = SelfAttention(12, heads=3, causal=True).double(), randn(2, 5, 12), []
    one_by_one = torch.cat([net(position, seen) for position in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(one_by_one, net(x))
