import pytest
import torch

from course_lib.nets import DiT
from course_lib.nets.dit import DiTBlock


@pytest.mark.parametrize(
    ("size", "channels", "patch"), [(8, 1, 2), (8, 3, 4), (9, 2, 3), (5, 1, 1), (28, 1, 4)]
)
def test_sizes_channels_and_patches(size, channels, patch):
    net = DiT(size, channels, patch, dim=16, depth=1, heads=2)
    torch.nn.init.ones_(net.out.weight)
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    out = net(x, torch.tensor([0.0, 1.0]))
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("context_dim", [None, 6])
def test_a_block_starts_as_the_identity(context_dim):
    block = DiTBlock(16, 2, context_dim)
    g = torch.Generator().manual_seed(0)
    x, c = torch.randn(2, 4, 16, generator=g), torch.randn(2, 16, generator=g)
    context = torch.randn(2, 3, 6, generator=g), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(block(x, c, context if context_dim else None), x)


def test_positions_matter():
    """Without them, permuting the patches would permute the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiT(4, 1, patch=2, dim=16, depth=1, heads=2).double()
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.full((1,), 0.5, dtype=torch.float64)
    swapped = x.roll(2, dims=2)  # the upper patches with the lower ones
    assert (net(swapped, t) - net(x, t).roll(2, dims=2)).abs().max() > 1e-3
    net.position.zero_()
    torch.testing.assert_close(net(swapped, t), net(x, t).roll(2, dims=2), rtol=1e-10, atol=1e-10)


def test_position_embedding_is_saved_with_the_weights():
    assert "position" in DiT(8, dim=16, depth=1, heads=2).state_dict()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch": 3}, "patch must divide image_size 8, got 3"),
        ({"dim": 18}, "dim must be divisible by 4, got 18"),
        ({"dim": 20, "heads": 3}, "heads must divide the width 20, got 3"),
    ],
)
def test_sizes_that_do_not_divide(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiT(8, **kwargs)


def test_another_image_size():
    net = DiT(8, dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, 8, 8\), got \(2, 1, 7, 7\)"):
        net(torch.zeros(2, 1, 7, 7), torch.zeros(2))
