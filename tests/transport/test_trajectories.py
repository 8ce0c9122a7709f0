"""Straightness and energy of paths whose integrals are known."""

import math

import pytest
import torch

from course_lib.transport import path_energy, straightness, wasserstein2


def line(ts, progress=lambda t: t):
    """Two paths: one moves by (3, 4), one rests; ``progress`` says how far along at time t."""
    ends = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    return torch.stack([progress(t) * ends for t in ts])


def arc(ts, angle):
    """One path along the unit circle, at constant speed, through ``angle``."""
    return torch.stack([torch.cos(angle * ts), torch.sin(angle * ts)], dim=-1)[:, None]


def times(n, start=0.0, end=1.0):
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def test_straight_and_steady_is_zero():
    ts = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    assert straightness(line(ts), ts) == pytest.approx(0, abs=1e-15)
    assert path_energy(line(ts), ts) == pytest.approx(25 / 2)
    # The same states at other times: straight, but no longer at constant speed.
    assert straightness(line(ts)) > 0.5


def test_direction_of_time_does_not_matter():
    ts, states = times(10), arc(times(10), 2.0)
    assert straightness(states.flip(0), ts.flip(0)) == pytest.approx(straightness(states, ts))
    assert path_energy(states.flip(0), ts.flip(0)) == pytest.approx(path_energy(states, ts))


@pytest.mark.parametrize("angle", [0.5, math.pi])
def test_arc_of_a_circle(angle):
    # |velocity|^2 = angle^2 and chord^2 = 4 sin^2(angle / 2); chords of 400 steps err by 1e-5.
    ts = times(400)
    chord = 4 * math.sin(angle / 2) ** 2
    assert path_energy(arc(ts, angle)) == pytest.approx(angle**2, rel=1e-5)
    assert straightness(arc(ts, angle)) == pytest.approx(angle**2 - chord, rel=1e-4)


def test_straight_but_accelerating():
    # Progress t^2 along a chord of length 5: integral of (2t - 1)^2 is 1/3; half the paths rest.
    ts = times(1000)
    assert straightness(line(ts, lambda t: t**2), ts) == pytest.approx(25 / 3 / 2, rel=1e-5)


def test_energy_is_chord_plus_straightness_at_any_duration():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 9, 2, 3, generator=generator, dtype=torch.float64)
    ts = torch.tensor([0.9, 0.8, 0.75, 0.4, 0.2, 0.1], dtype=torch.float64)
    chord = (states[-1] - states[0]).flatten(1).square().sum(1).mean().item()
    expected = chord / 0.8 + straightness(states, ts)
    assert path_energy(states, ts) == pytest.approx(expected, rel=1e-12)


def test_energy_is_at_least_the_transport_cost():
    generator = torch.Generator().manual_seed(1)
    ends = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
    ts = times(4)[:, None, None]
    states = (1 - ts) * ends[0] + ts * ends[1]
    assert path_energy(states) > wasserstein2(*ends) ** 2


@pytest.mark.parametrize("metric", [straightness, path_energy])
def test_errors(metric):
    states = torch.zeros(4, 2, 2)
    with pytest.raises(ValueError, match="at least two states"):
        metric(states[:1])
    with pytest.raises(ValueError, match=r"shape \(S\+1, B, \.\.\.\)"):
        metric(states[:, 0])
    with pytest.raises(ValueError, match=r"\(S\+1,\) = \(4,\), one time a state; got \(5,\)"):
        metric(states, times(4))
    with pytest.raises(ValueError, match="ts must rise or fall strictly"):
        metric(states, torch.tensor([0.0, 0.5, 0.5, 1.0]))
