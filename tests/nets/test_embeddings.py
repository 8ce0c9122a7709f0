import math

import pytest
import torch

from course_lib.nets.embeddings import ConditionEmbedding, check_inputs, sinusoidal


def test_sinusoidal_is_the_formula():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    got = sinusoidal(t, 6)
    for i, time in enumerate(t.tolist()):
        angles = [1000 * time * 10_000 ** (-k / 3) for k in range(3)]
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert got[i].tolist() == pytest.approx(want, abs=1e-12)


def test_sinusoidal_tells_times_apart():
    e = sinusoidal(torch.linspace(0, 1, 1001, dtype=torch.float64), 64)
    distances = torch.cdist(e, e) + 10 * torch.eye(len(e), dtype=torch.float64)
    assert distances.min() > 0.5


def test_sinusoidal_needs_more_than_half_precision():
    t = torch.tensor([0.5, 0.7], dtype=torch.bfloat16)
    torch.testing.assert_close(sinusoidal(t, 8), sinusoidal(t.float(), 8), rtol=0, atol=0)


def test_check_inputs_accepts_any_size_for_none():
    check_inputs(torch.zeros(2, 1, 5, 7), torch.zeros(2), 1, None, None)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_check_inputs_names_x(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\), got"):
        check_inputs(torch.zeros(shape), torch.zeros(4), 2)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1)])
def test_check_inputs_names_t(shape):
    with pytest.raises(ValueError, match=r"t must have shape \(4,\)"):
        check_inputs(torch.zeros(4, 2), torch.zeros(shape), 2)


def test_no_label_is_the_last_label():
    embedding = ConditionEmbedding(16, num_classes=3).double()
    t = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    absent, *_ = embedding(t)
    null, *_ = embedding(t, torch.full((5,), 3))
    torch.testing.assert_close(absent, null, rtol=0, atol=0)
    other, *_ = embedding(t, torch.zeros(5, dtype=torch.int64))
    assert (absent - other).abs().amax() > 1e-3


def test_text_gets_a_token_that_is_always_kept():
    embedding = ConditionEmbedding(16, context_dim=6)
    tokens, mask = torch.randn(2, 3, 6), torch.zeros(2, 3, dtype=torch.bool)
    _, (padded, keep), _ = embedding(torch.rand(2), (tokens, mask))
    torch.testing.assert_close(padded[:, 1:], tokens, rtol=0, atol=0)
    assert keep.tolist() == [[True, False, False, False]] * 2
    _, (alone, kept), _ = embedding(torch.rand(2))
    assert alone.shape == (2, 1, 6)
    assert kept.all()


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (torch.zeros(4), r"got \(4,\) float32"),
        (torch.zeros(3, dtype=torch.int64), r"got \(3,\) int64"),
        (torch.tensor([0, 1, 2, 4]), r"0 to 3 .*got \[0, 1, 2, 4\]"),
        (torch.tensor([-1, 1, 2, 3]), r"got \[-1, 1, 2, 3\]"),
        ([0, 1, 2, 3], "got list"),
    ],
)
def test_wrong_labels(cond, message):
    with pytest.raises(ValueError, match=f"cond must be labels.*{message}"):
        ConditionEmbedding(8, num_classes=3)(torch.rand(4), cond)


KEEP = torch.ones(4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (torch.zeros(4, 5, 6), r"got \(4, 5, 6\) float32"),
        ((torch.zeros(4, 5, 6),), r"got \(\(4, 5, 6\) float32\)"),
        ((torch.zeros(4, 5, 7), KEEP), r"\(4, 5, 7\)"),
        ((torch.zeros(3, 5, 6), KEEP[:3]), r"\(3, 5, 6\)"),
        ((torch.zeros(4, 6), KEEP), r"\(4, 6\)"),
        ((torch.zeros(4, 5, 6), KEEP[:, 1:]), r"\(4, 4\) bool"),
        ((torch.zeros(4, 5, 6), KEEP.float()), r"\(4, 5\) float32"),
        ((torch.zeros(4, 5, 6), None), "NoneType"),
    ],
)
def test_wrong_text(cond, message):
    with pytest.raises(ValueError, match=rf"cond must be tokens \(4, N, 6\).*{message}"):
        ConditionEmbedding(8, context_dim=6)(torch.rand(4), cond)


def test_condition_for_a_net_without_one():
    with pytest.raises(ValueError, match="cond must be None"):
        ConditionEmbedding(8)(torch.rand(4), torch.zeros(4, dtype=torch.int64))


def test_both_kinds_of_condition():
    with pytest.raises(ValueError, match="num_classes and context_dim exclude each other"):
        ConditionEmbedding(8, num_classes=3, context_dim=6)
