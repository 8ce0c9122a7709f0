import pytest
import torch

from course_lib.objectives import logit_normal_times, uniform_times
from course_lib.training.shares import SharedDraws

ROWS, WORLD = 10, 3  # rows of a process, and processes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shared(draw, rank):
    """What process `rank` draws."""
    generator = seeded(0)
    with SharedDraws(generator, seeded(100 + rank), ROWS, rank, WORLD):
        return draw(ROWS, generator)


DRAWS = {
    "rand": lambda n, g: torch.rand(n, generator=g),
    "rand in double": lambda n, g: torch.rand((n, 2), generator=g, dtype=torch.float64),
    "randn by sizes": lambda n, g: torch.randn(n, 4, 2, generator=g),
    "randn by size": lambda n, g: torch.randn(size=(n, 3), generator=g),
    "noise of images": lambda n, g: torch.empty(n, 1, 5, 5).normal_(generator=g),
    "normal": lambda n, g: torch.empty(n).normal_(3, 0.1, generator=g),
    "uniform": lambda n, g: torch.empty(n, 2).uniform_(-1, 1, generator=g),
    "bernoulli": lambda n, g: torch.empty(n).bernoulli_(0.3, generator=g),
    "uniform times": lambda n, g: uniform_times(n, generator=g),
    "logit-normal times": lambda n, g: logit_normal_times(n, generator=g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_processes_draw_together_what_one_draws_alone(draw):
    alone = draw(ROWS * WORLD, seeded(0))
    parts = [shared(draw, rank) for rank in range(WORLD)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), alone)


def test_draws_follow_each_other_as_they_do_alone():
    def times_then_noise(n, generator):
        t = torch.rand(n, generator=generator)
        offset = torch.rand(1, generator=generator)  # not one a row: the same everywhere
        return t, offset, torch.empty(n, 2).normal_(generator=generator)

    t, offset, eps = times_then_noise(ROWS * WORLD, seeded(0))
    for rank in range(WORLD):
        mine = shared(times_then_noise, rank)
        wanted = (t[rank::WORLD], offset, eps[rank::WORLD])
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda n, g: torch.randint(1000, (n,), generator=g),
        lambda n, g: torch.multinomial(torch.ones(1000), n, generator=g),
        lambda n, g: torch.empty(n).bernoulli_(torch.full((n,), 0.5), generator=g),
    ],
)
def test_other_draws_are_each_process_s_own(draw):
    parts = [shared(draw, rank) for rank in range(WORLD)]
    assert not torch.equal(parts[0], parts[1])
    assert torch.equal(parts[1], draw(ROWS, seeded(101)))


def test_other_generators_and_other_functions_are_left_alone():
    other = seeded(7)
    found = shared(lambda n, _: torch.rand(n, generator=other) + torch.zeros(n), rank=1)
    assert torch.equal(found, torch.rand(ROWS, generator=seeded(7)))
