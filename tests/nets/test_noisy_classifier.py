import pytest
import torch

from course_lib.nets.noisy_classifier import NoisyDigitClassifier, noisy_cross_entropy
from course_lib.paths import Linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [8, 32])
def test_shapes_and_gradients(size):
    model = NoisyDigitClassifier(size, Linear(), width=4)
    images = torch.randn(3, 1, size, size, generator=generator())
    assert model(images, torch.rand(3, generator=generator())).shape == (3, 10)
    noisy_cross_entropy(model, images, torch.tensor([0, 1, 9]), generator=generator()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_log_prob_is_a_distribution_that_depends_on_the_time():
    model = NoisyDigitClassifier(8, Linear(), width=4).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator())
    early, late = (
        torch.stack([model.log_prob(images, t, torch.full((2,), c)) for c in range(10)])
        for t in torch.tensor([[0.1, 0.1], [0.9, 0.9]], dtype=torch.float64)
    )
    torch.testing.assert_close(early.exp().sum(0), torch.ones(2, dtype=torch.float64))
    assert (early - late).abs().max() > 1e-6


def test_loss_is_the_mean_over_noisy_images():
    model = NoisyDigitClassifier(8, Linear(), width=4).double()
    x0 = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=generator())
    labels, g = torch.arange(4), generator(3)
    t = torch.rand(4, generator=g, dtype=torch.float64)
    eps = torch.empty_like(x0).normal_(generator=g)
    xt = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * eps
    want = -model(xt, t).log_softmax(-1)[torch.arange(4), labels].mean()
    got = noisy_cross_entropy(model, x0, labels, generator=generator(3))
    torch.testing.assert_close(got, want)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 6"):
        NoisyDigitClassifier(6, Linear())
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, 8, 8\)"):
        NoisyDigitClassifier(8, Linear())(torch.zeros(2, 1, 28, 28), torch.zeros(2))
