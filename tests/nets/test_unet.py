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
