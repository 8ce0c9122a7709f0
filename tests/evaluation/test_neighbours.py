"""Precision and recall against a search by hand, and where the answer is known."""

import pytest
import torch

from course_lib.evaluation import neighbours, precision_recall


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inside(points, others, k):
    """Equation 1 in loops: is a point within the k-th neighbour's distance of one of the others?"""
    found = []
    for p in points:
        hits = []
        for i, o in enumerate(others):
            gaps = sorted((o - q).norm().item() for j, q in enumerate(others) if j != i)
            hits.append((p - o).norm().item() <= gaps[k - 1])
        found.append(any(hits))
    return sum(found) / len(found)


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equations_1_and_2_by_hand(k, chunk, monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    real, fake = normal(30, 4), 1.4 * normal(23, 4, seed=1) + 0.5
    precision, recall = precision_recall(real, fake, k)
    assert precision == pytest.approx(inside(fake, real, k), abs=1e-12)
    assert recall == pytest.approx(inside(real, fake, k), abs=1e-12)
    assert precision_recall(fake, real, k) == (recall, precision)
    assert 0.05 < precision < 0.95


def test_equal_sets_and_sets_far_apart():
    x = normal(50, 3)
    assert precision_recall(x, x.flip(0)) == (1.0, 1.0)
    assert precision_recall(x, x + 1000) == (0.0, 0.0)
    twice = torch.cat([x, x, x, x])  # so many copies that every radius is 0
    assert precision_recall(twice, x) == (1.0, 1.0)
    assert precision_recall(twice, x + 1e-9) == (0.0, 1.0)


def test_one_mode_of_two_is_precise_and_recalls_half():
    real = torch.cat([normal(600, 2), normal(600, 2, seed=1) + 50])
    precision, recall = precision_recall(real, normal(600, 2, seed=2))
    assert precision > 0.97
    assert recall == pytest.approx(0.5, abs=0.02)
    # And both modes with as many points in between: all is recalled, two in three are precise.
    between = torch.cat([real + 0.01, normal(600, 2, seed=3) + 20])
    precision, recall = precision_recall(real, between)
    assert recall > 0.99
    assert precision == pytest.approx(2 / 3, abs=0.01)


def test_narrow_samples_are_precise_and_forgetful():
    real = normal(1000, 8)
    shares = [precision_recall(real, s * normal(1000, 8, seed=1)) for s in (1.0, 0.7, 0.4)]
    precisions, recalls = zip(*shares, strict=True)
    assert precisions[0] < precisions[1] < precisions[2]
    assert recalls[0] > recalls[1] > recalls[2]


def test_any_shape_type_and_scale():
    real, fake = normal(20, 2, 3), normal(20, 2, 3, seed=1)
    expected = precision_recall(real, fake)
    assert precision_recall(real.flatten(1) * 1e6, fake.flatten(1) * 1e6) == expected
    assert precision_recall(real.float().requires_grad_(), fake.float()) == expected


@pytest.mark.parametrize(
    ("real", "fake", "k", "match"),
    [
        (normal(10, 2), normal(10, 2), 0, "k must be at least 1; got 0"),
        (normal(3, 2), normal(10, 2), 3, "N >= 4"),
        (normal(10, 2), normal(3, 2), 3, "N >= 4"),
        (normal(10, 2), normal(10, 3), 3, "same dimension"),
        (normal(10, 2) / 0, normal(10, 2), 3, "must be finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(real, fake, k, match):
    with pytest.raises(ValueError, match=match):
        precision_recall(real, fake, k)
