"""Figures in the plane show the points, densities and vectors that they were given."""

import numpy as np
import pytest
import torch

from course_lib.plotting import density, scatter, trajectories, vector_field


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_normal(x, mean=(1.0, -2.0)):
    """An unnormalised Gaussian, highest at ``mean``."""
    return -0.5 * (x - torch.tensor(mean)).square().sum(-1)


def limits(ax):
    return (*ax.get_xlim(), *ax.get_ylim())


def test_scatter_shows_every_set_on_the_same_axes():
    a, b = normal(20, 2), 5 * normal(30, 2, seed=1)
    fig = scatter({"data": a, "model": b})
    extent = 1.05 * b.abs().max().item()
    for ax, points, title in zip(fig.axes, (a, b), ("data", "model"), strict=True):
        assert np.allclose(ax.collections[0].get_offsets(), points)
        assert ax.get_title() == title
        assert limits(ax) == pytest.approx((-extent, extent, -extent, extent))
        assert ax.get_aspect() == 1


def test_scatter_of_one_set_with_density():
    fig = scatter(normal(5, 2), density=log_normal, limit=4.0)
    (ax,) = fig.axes
    assert len(ax.collections) == 2
    assert limits(ax) == (-4, 4, -4, 4)


def test_density_is_highest_at_the_mode():
    fig = density({"left": log_normal, "right": lambda x: log_normal(-x)}, limit=4.0)
    for ax, sign in zip(fig.axes, (1, -1), strict=True):
        contours = ax.collections[0]
        top = contours.get_paths()[-1].vertices  # where the density exceeds 0.9 of its maximum
        assert top.mean(0) == pytest.approx([sign * 1.0, sign * -2.0], abs=0.05)
        radius = np.linalg.norm(top - [sign * 1.0, sign * -2.0], axis=1).max()
        assert radius == pytest.approx((2 * np.log(1 / 0.9)) ** 0.5, rel=0.05)


def test_density_must_return_one_number_a_point():
    with pytest.raises(ValueError, match=r"density must map \(N, 2\) to \(N,\); got"):
        density(lambda x: x, limit=1.0)


def test_trajectories_draw_paths_and_ends():
    states = normal(6, 4, 2)
    fig = trajectories({"one": states, "two": states}, density=log_normal, ends=("z", "x"))
    for ax in fig.axes:
        _, paths, first, last = ax.collections
        assert len(paths.get_segments()) == 4
        assert np.allclose(paths.get_segments()[2], states[:, 2])
        assert np.allclose(first.get_offsets(), states[0])
        assert np.allclose(last.get_offsets(), states[-1])
        assert len(first.get_facecolor()) == 0  # open and filled: not told by colour alone
        assert len(last.get_facecolor()) == 1
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["z", "x"]


def test_axes_hold_states_that_blow_up():
    states = torch.tensor([[[1.0, 2.0]], [[float("inf"), float("nan")]]])
    assert trajectories(states).axes[0].get_xlim() == pytest.approx((-2.1, 2.1))


def test_vector_field_draws_the_field():
    def rotate(x):
        return torch.stack([-x[:, 1], x[:, 0]], dim=-1)

    fig = vector_field({"turn": rotate, "back": lambda x: -rotate(x)}, limit=2.0, resolution=5)
    turn, back = (ax.collections[0] for ax in fig.axes)
    assert turn.N == 25
    assert np.allclose(turn.U, -turn.XY[:, 1])
    assert np.allclose(turn.V, turn.XY[:, 0])
    assert np.allclose(back.U, -turn.U)
    assert limits(fig.axes[0]) == (-2, 2, -2, 2)


def test_one_vector_field_over_a_density():
    (ax,) = vector_field(lambda x: -x, limit=2.0, density=log_normal).axes
    assert len(ax.collections) == 2


def test_each_figure_may_have_a_density_of_its_own():
    fields = {"left": lambda x: -x, "right": lambda x: x}
    behind = {"left": log_normal, "right": lambda x: log_normal(-x)}
    figures = (
        vector_field(fields, limit=4.0, density=behind),
        scatter(dict.fromkeys(fields, normal(9, 2)), limit=4.0, density=behind),
    )
    for ax, sign in ((fig.axes[k], 1 - 2 * k) for fig in figures for k in (0, 1)):
        top = ax.collections[0].get_paths()[-1].vertices
        assert top.mean(0) == pytest.approx([sign * 1.0, sign * -2.0], abs=0.05)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"samples\['a'\] must have shape \(N, 2\); got \(4, 3\)"):
        scatter({"a": normal(4, 3)})
    with pytest.raises(ValueError, match=r"trajectory\[''\] must have shape \(S\+1, B, 2\)"):
        trajectories(normal(4, 2))
    with pytest.raises(ValueError, match=r"fields\[''\] must map shape \(9, 2\)"):
        vector_field(lambda x: x[:, 0], limit=1.0, resolution=3)
