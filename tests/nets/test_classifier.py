import pytest
import torch

from course_lib.nets.classifier import DigitClassifier, cross_entropy, jittered_cross_entropy


@pytest.mark.parametrize("size", [8, 28])
def test_shapes_and_gradients(size):
    model = DigitClassifier(size, width=4)
    images = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert model.features(images).shape == (3, 64)
    assert model(images).shape == (3, 10)
    cross_entropy(model, images, torch.tensor([0, 1, 9])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_do_not_see_each_other():
    model = DigitClassifier(8, width=4).double().eval()
    images = torch.randn(
        5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-12, atol=1e-12)


def test_loss_of_even_odds_is_log_ten():
    model = DigitClassifier(8, width=4).eval()
    torch.nn.init.zeros_(model.logits.weight)
    torch.nn.init.zeros_(model.logits.bias)
    loss = cross_entropy(model, torch.randn(4, 1, 8, 8), torch.arange(4))
    assert loss.item() == pytest.approx(2.302585, abs=1e-5)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size must be at least 8; got 7"):
        DigitClassifier(7)
    with pytest.raises(ValueError, match=r"shape \(B, 1, 8, 8\); got \(2, 1, 28, 28\)"):
        DigitClassifier(8)(torch.zeros(2, 1, 28, 28))


def test_jitter_moves_images_as_the_generator_says():
    seen = []

    class Look(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.flatten(1)[:, :10]

    images = torch.full((4, 1, 8, 8), -1.0)
    images[:, :, 3:5, 3:5] = 1
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        jittered_cross_entropy(Look(), images, torch.arange(4), generator=generator)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[0][0], seen[0][1], atol=0.05)  # each its own way
    # An affine map near the identity moves the ink by less than two pixels and keeps most of it.
    ink = (seen[0] + 1).sum((1, 2, 3)) / (images + 1).sum((1, 2, 3))
    assert ((ink > 0.5) & (ink < 2)).all()
    assert (seen[0][:, :, 0] < -0.9).all()
