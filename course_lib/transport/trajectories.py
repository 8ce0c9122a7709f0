"""How straight, and how long, the paths of a sampler are."""

import torch
from torch import Tensor

__all__ = ["path_energy", "straightness"]


def straightness(trajectory: Tensor, ts: Tensor | None = None) -> float:
    """Straightness of rectified flow: 0 when, and only when, every path is straight and steady.

    ``S(Z) = integral of E |(Z_end - Z_start) / T - dZ/dt|^2 dt`` over a time T (Liu et al., 2023,
    "Flow straight and fast", there with T = 1), with dZ/dt constant between the times of ``ts``.
    A flow with S = 0 is solved exactly by one Euler step.

    Args:
        trajectory: states along the way, shape (S+1, B, ...), such as ``sample(...,
            return_trajectory=True)`` gives.
        ts: strictly monotone times of the states, shape (S+1,), in either direction; by default
            evenly spaced over [0, 1].

    Returns:
        S(Z) >= 0, in squared data units per unit of time.

    Raises:
        ValueError: if shapes do not match, there are fewer than two states, or ``ts`` turns back.
    """
    states, steps = _states_and_steps(trajectory, ts)
    velocity = states.diff(dim=0) / steps[:, None, None]
    chord = (states[-1] - states[0]) / steps.sum()
    return _time_integral(velocity - chord, steps)


def path_energy(trajectory: Tensor, ts: Tensor | None = None) -> float:
    """Kinetic energy of the paths, ``integral of E |dZ/dt|^2 dt``.

    Over unit time it is at least the squared W2 distance between the two ends, with equality for
    the optimal transport flow (Benamou and Brenier, 2000). It exceeds the mean squared length of
    the chords by exactly the :func:`straightness`.

    Args:
        trajectory: states along the way, shape (S+1, B, ...).
        ts: strictly monotone times of the states, shape (S+1,), in either direction; by default
            evenly spaced over [0, 1].

    Returns:
        The energy, in squared data units per unit of time.

    Raises:
        ValueError: if shapes do not match, there are fewer than two states, or ``ts`` turns back.
    """
    states, steps = _states_and_steps(trajectory, ts)
    return _time_integral(states.diff(dim=0) / steps[:, None, None], steps)


def _states_and_steps(trajectory: Tensor, ts: Tensor | None) -> tuple[Tensor, Tensor]:
    """States (S+1, B, D) and signed steps in time (S,), both float64."""
    if trajectory.ndim < 3 or len(trajectory) < 2:
        raise ValueError(
            "trajectory must have shape (S+1, B, ...) with at least two states; "
            f"got {tuple(trajectory.shape)}"
        )
    times = torch.linspace(0, 1, len(trajectory), dtype=torch.float64) if ts is None else ts
    if times.shape != trajectory.shape[:1]:
        raise ValueError(
            f"ts must have shape (S+1,) = ({len(trajectory)},), one time a state; "
            f"got {tuple(times.shape)}"
        )
    steps = times.detach().double().cpu().diff()
    if not bool((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"ts must rise or fall strictly; got {times.tolist()}")
    return trajectory.detach().double().cpu().flatten(2), steps


def _time_integral(velocity: Tensor, steps: Tensor) -> float:
    """Integral over time of the mean squared norm of velocities (S, B, D)."""
    return float((velocity.square().sum(-1).mean(1) * steps.abs()).sum())
