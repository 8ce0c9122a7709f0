import pytest
import torch

from course_lib.nets import UNet


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 9), (28, 28), (1, 1)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
def test_any_size(size, multipliers):
    net = UNet(3, width=4, multipliers=multipliers, heads=2)
    torch.nn.init.ones_(net.out.weight)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    out = net(x, torch.tensor([0.0, 1.0]))
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("width", [4, 6, 10, 24])
def test_any_width_has_a_group_norm(width):
    x = torch.zeros(1, 1, 4, 4)
    assert UNet(1, width=width, heads=1)(x, torch.zeros(1)).shape == x.shape


def test_no_levels():
    with pytest.raises(ValueError, match="multipliers must have at least one level"):
        UNet(multipliers=())


def test_heads_must_divide_the_lowest_level():
    with pytest.raises(ValueError, match="heads must divide the width 20, got 3"):
        UNet(width=10, multipliers=(1, 2), heads=3)


def test_patches_count_as_pixels_with_more_channels():
    net = UNet(1, width=8, multipliers=(1, 2), heads=2, patch=2)
    coarse = UNet(4, width=8, multipliers=(1, 2), heads=2)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    coarse.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 1, 8, 12), torch.rand(2)
    squares = torch.nn.functional.pixel_unshuffle(x, 2)
    want = torch.nn.functional.pixel_shuffle(coarse(squares, t), 2)
    torch.testing.assert_close(net(x, t), want)
    assert want.abs().max() > 1e-3


def test_patch_must_fit():
    with pytest.raises(ValueError, match="patch must be at least 1, got 0"):
        UNet(1, patch=0)
    with pytest.raises(ValueError, match=r"patch 2 must divide H and W of x, got \(1, 1, 7, 8\)"):
        UNet(1, width=8, patch=2)(torch.zeros(1, 1, 7, 8), torch.zeros(1))
