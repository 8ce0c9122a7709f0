import pytest
import torch
from sklearn.datasets import load_sample_images

from course_lib.data import photographs


def test_the_two_photographs_keep_their_colours():
    images = photographs(96)
    assert images.shape == (2, 3, 96, 144)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    raw = torch.stack([torch.tensor(image) for image in load_sample_images().images]).double()
    mean = raw.mean((1, 2)) / 127.5 - 1
    torch.testing.assert_close(images.double().mean((2, 3)), mean, rtol=0, atol=5e-3)


def test_a_small_photograph_is_a_local_mean_of_a_large_one():
    large, small = photographs(320), photographs(80)
    blocks = large.unflatten(3, (120, 4)).unflatten(2, (80, 4)).mean((3, 5))
    assert (blocks - small).abs().mean() < 0.03
    assert (large[:, :, ::4, ::4] - small).abs().mean() > 0.06  # picking pixels would alias


@pytest.mark.parametrize("height", [0, 95, 428])
def test_other_heights_are_refused(height):
    with pytest.raises(ValueError, match="height must be an even number"):
        photographs(height)
