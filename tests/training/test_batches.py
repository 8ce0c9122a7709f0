import pytest
import torch

from course_lib.training.batches import Batches, step_seed


def test_step_seeds_of_neighbouring_runs_steps_and_streams_differ():
    seeds = {step_seed(s, n, k) for s in range(10) for n in range(50) for k in range(3)}
    assert len(seeds) == 10 * 50 * 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_batch_is_a_function_of_seed_and_step_alone():
    x0 = torch.arange(100.0)[:, None]
    batches = Batches(x0, 8, seed=3)
    late = batches.batch(7)[0]
    batches.batch(0)
    torch.testing.assert_close(batches.batch(7)[0], late, rtol=0, atol=0)
    torch.testing.assert_close(Batches(x0, 8, seed=3).batch(7)[0], late, rtol=0, atol=0)
    assert not torch.equal(batches.batch(8)[0], late)
    assert not torch.equal(Batches(x0, 8, seed=4).batch(7)[0], late)


def test_condition_stays_with_its_data():
    x0 = torch.arange(50.0)
    tokens = x0[:, None, None].expand(-1, 3, 2)
    mask = (x0[:, None] > 10).expand(-1, 3)
    batch, cond = Batches((x0, (tokens, mask)), 16, seed=0).batch(0)
    torch.testing.assert_close(cond[0][:, 0, 0], batch)
    torch.testing.assert_close(cond[1][:, 0], batch > 10)
    batch, labels = Batches((x0, x0.long()), 16, seed=0).batch(0)
    torch.testing.assert_close(labels.float(), batch)


def test_missing_condition_may_be_named():
    assert Batches((torch.zeros(4, 2), None), 2, seed=0).batch(0)[1] is None


@pytest.mark.parametrize("labelled", [False, True])
def test_sampler_is_called_with_size_and_generator(labelled):
    def sampler(n, *, generator):
        x0 = torch.randn(n, 2, generator=generator)
        return (x0, x0[:, 0] > 0) if labelled else x0

    batches = Batches(sampler, 6, seed=1)
    x0, cond = batches.batch(4)
    assert x0.shape == (6, 2)
    torch.testing.assert_close(batches.batch(4)[0], x0, rtol=0, atol=0)
    assert batches.description == "sampler"
    if labelled:
        torch.testing.assert_close(cond, x0[:, 0] > 0)


def test_ranks_share_the_batch_of_one_process():
    batches = Batches(torch.arange(100.0), 9, seed=0)
    parts = [batches.batch(2, rank, 3)[0] for rank in range(3)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(), batches.batch(2)[0])
    with pytest.raises(ValueError, match="divisible by the number of processes, 2; got 9"):
        batches.batch(2, 0, 2)


def test_rejects_what_is_no_data():
    with pytest.raises(TypeError, match="got list"):
        Batches([1, 2], 4, seed=0)
    with pytest.raises(TypeError, match="got str"):
        Batches(lambda n, generator: "x", 4, seed=0).batch(0)
    with pytest.raises(ValueError, match=r"at least one example.*\(0, 2\)"):
        Batches(torch.zeros(0, 2), 4, seed=0)
    with pytest.raises(ValueError, match=r"x0 has 5 examples, cond has \[4\]"):
        Batches((torch.zeros(5, 2), torch.zeros(4)), 4, seed=0)
