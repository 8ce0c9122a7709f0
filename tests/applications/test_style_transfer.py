"""Style transfer against sums by hand, and on small images whose style is known."""

import sys
import types
import urllib.error

import pytest
import torch
from torch import nn

from course_lib.applications.style_transfer import (
    RandomFeatures,
    VGGFeatures,
    content_loss,
    gram,
    style_loss,
    total_variation,
    transfer,
    vgg_features,
)
from course_lib.data import photographs


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def waves(n, size=16):
    """Images of diagonal stripes and of vertical ones, in turn, shape (n, 1, size, size)."""
    i = torch.arange(size).double()
    slanted, upright = torch.sin(i[:, None] + i), torch.sin(1.5 * i).expand(size, size)
    return 0.8 * torch.stack([slanted, upright] * n)[:n, None]


SMALL = {"scales": (1, 2), "channels": 8, "in_channels": 1, "kernel": 3}


# Gram matrices


def test_gram_is_the_sum_by_hand_over_places():
    maps = normal(2, 3, 4, 5)
    by_hand = torch.zeros(2, 3, 3).double()
    for i in range(4):
        for j in range(5):
            f = maps[:, :, i, j]
            by_hand += f[:, :, None] * f[:, None] / 20
    torch.testing.assert_close(gram(maps), by_hand)


def test_gram_forgets_places_and_the_size_of_the_image():
    maps = normal(2, 3, 4, 6)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = maps.flatten(2)[:, :, order].reshape(maps.shape)
    torch.testing.assert_close(gram(shuffled), gram(maps))
    torch.testing.assert_close(gram(torch.cat([maps, maps], 3)), gram(maps))
    assert (gram(maps.flip(1)) - gram(maps)).abs().max() > 0.1  # but not which channel is which


def test_the_distance_of_gram_matrices_is_a_maximum_mean_discrepancy():
    """Li et al., 2017, eq. 7: the kernel is (x . y)^2."""
    one, other = normal(1, 3, 4, 5), normal(1, 3, 6, 2, seed=1)

    def kernel(x, y):
        return (x[0].flatten(1).T @ y[0].flatten(1)).square().mean()

    mmd = kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)
    torch.testing.assert_close((gram(one) - gram(other)).square().sum(), mmd)


# losses


def test_losses_by_hand():
    maps, targets = [normal(2, 3, 4, 4), normal(2, 2, 2, 2)], [normal(2, 3, 5, 5, seed=1)]
    targets.append(normal(2, 2, 2, 2, seed=2))
    style = torch.zeros(2).double()
    for m, p in zip(maps, targets, strict=True):
        g, a = gram(m), gram(p)
        style += (g - a).square().sum((1, 2)) / a.square().sum((1, 2)) / 2
    torch.testing.assert_close(style_loss(maps, [gram(p) for p in targets]), style)
    one, other = maps[1], targets[1]
    content = (one - other).square().sum((1, 2, 3)) / other.square().sum((1, 2, 3))
    torch.testing.assert_close(content_loss([one], [other]), content)
    torch.testing.assert_close(
        content_loss([one, one], [other, 2 * one]), content / 2 + torch.tensor([0.125, 0.125])
    )


def test_an_image_has_no_distance_from_itself_and_one_style_serves_all():
    features, images = RandomFeatures(**SMALL), waves(4)
    maps = features(images)
    assert style_loss(maps, [gram(m) for m in maps]).tolist() == [0] * 4
    assert content_loss(maps, maps).tolist() == [0] * 4
    first = [gram(m[:1]) for m in maps]
    found = style_loss(maps, first)
    torch.testing.assert_close(found[[0, 2]], torch.zeros(2).double())
    assert found[[1, 3]].min() > 0.1


def test_gradients_of_the_losses():
    features, x = RandomFeatures(**SMALL).double(), waves(1, 8).requires_grad_()
    target = features(0.5 * normal(1, 1, 8, 8))
    grams = [gram(m) for m in target]
    x = (x.detach() + 0.05 * normal(1, 1, 8, 8, seed=3)).requires_grad_()  # off the kinks
    assert torch.autograd.gradcheck(lambda v: style_loss(features(v), grams), x)
    assert torch.autograd.gradcheck(lambda v: content_loss(features(v), target), x)
    assert torch.autograd.gradcheck(total_variation, x)


def test_total_variation_of_a_ramp():
    ramp = torch.arange(5).double().expand(2, 1, 3, 5)
    assert total_variation(ramp).tolist() == [1, 1]
    assert total_variation(2 * ramp + 3).tolist() == [4, 4]


# random features


def test_random_features_are_decided_by_their_seed():
    images = waves(2)
    one, same, other = (RandomFeatures(**SMALL, seed=s)(images) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert (one[0] - other[0]).abs().max() > 0.1
    state = torch.random.get_rng_state()
    RandomFeatures(**SMALL)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_features_by_hand():
    features, images = RandomFeatures(**SMALL).double(), normal(2, 1, 8, 8)
    fine, coarse = features(images)
    assert (fine.shape, coarse.shape) == ((2, 8, 6, 6), (2, 8, 2, 2))
    half = images.reshape(2, 4, 2, 4, 2).mean((2, 4))
    window = half[1, 1:4, 0:3]
    expected = (features.filters[1, 5, 0] * window).sum().clamp(min=0)
    torch.testing.assert_close(coarse[1, 5, 1, 0], expected)


def test_centred_filters_do_not_see_flat_colour():
    images = photographs(32).double() / 2
    seen, blind = (RandomFeatures((1, 2), 8, centred=c) for c in (False, True))
    for a, b in zip(blind(images), blind(images + 0.4), strict=True):
        torch.testing.assert_close(a, b)
    assert (seen(images)[0] - seen(images + 0.4)[0]).abs().mean() > 0.1


# transfer


@pytest.fixture(scope="module")
def stripes():
    features = RandomFeatures(**SMALL).double()
    content, style = waves(2)[:1], waves(2)[1:]
    made = transfer(content, style, features, style_weight=10.0, steps=60)
    return features, content, style, made


def test_style_comes_and_content_stays(stripes):
    features, content, style, made = stripes
    grams = [gram(m) for m in features(style)]
    before, after = (style_loss(features(x), grams).item() for x in (content, made))
    assert after < before / 5
    strict = transfer(content, style, features, style_weight=10.0, content_weight=20.0, steps=60)
    loose, kept, other = (
        content_loss(features(x)[:1], features(content)[:1]) for x in (made, strict, style)
    )
    assert kept < loose / 3 < other / 4
    assert made.abs().max() <= 1
    assert made.shape == content.shape


def test_without_style_the_content_stays(stripes):
    features, content, style, _ = stripes
    same = transfer(content, style, features, style_weight=0.0, steps=3)
    torch.testing.assert_close(same, content)


def test_images_of_a_batch_do_not_touch_each_other(stripes):
    features, content, style, made = stripes
    both = transfer(torch.cat([style, content]), style, features, style_weight=10.0, steps=60)
    torch.testing.assert_close(both[1:], made)
    torch.testing.assert_close(both[:1], style)  # it has the style already


def test_the_first_step_of_adam_goes_against_the_sign_of_the_gradient(stripes):
    features, content, style, _ = stripes
    x = content.clone().requires_grad_()
    maps, grams = features(x), [gram(m) for m in features(style)]
    loss = 3 * style_loss(maps[1:], grams[1:]) + 2 * total_variation(x)
    loss = loss + content_loss(maps[:1], features(content)[:1])
    (slope,) = torch.autograd.grad(loss.sum(), x)
    seen = []
    options = {"style_weight": 3.0, "smoothness": 2.0, "style_layers": [1], "steps": 1}
    with torch.no_grad():
        made = transfer(
            content, style, features, lr=0.01, callback=lambda i, y: seen.append((i, y)), **options
        )
    torch.testing.assert_close(made, content - 0.01 * slope.sign(), rtol=0, atol=1e-6)
    assert seen[0][0] == 1
    assert torch.equal(seen[0][1], made)


def test_smoothness_smooths(stripes):
    features, content, style, made = stripes
    smooth = transfer(content, style, features, style_weight=10.0, smoothness=5.0, steps=60)
    assert total_variation(smooth) < 0.7 * total_variation(made)


def test_a_networks_weights_stay_untouched(stripes):
    _, content, style, _ = stripes
    network = nn.Conv2d(1, 4, 3).double()
    transfer(content, style, lambda x: [network(x)], steps=2)
    assert network.weight.grad is None


def test_colour_and_styles_of_another_size():
    china, flower = photographs(32)[:1], photographs(40)[1:]
    features = RandomFeatures((1, 2), 16)
    made = transfer(china, flower, features, style_weight=30.0, steps=40)
    grams = [gram(m) for m in features(flower)]
    assert style_loss(features(made), grams) < style_loss(features(china), grams) / 10


# VGG, with a small network in its place


def tiny_vgg():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 7, 3, padding=1), nn.ReLU(inplace=True)]
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def test_vgg_layers_are_those_of_that_name(monkeypatch):
    asked = []
    models = types.ModuleType("torchvision.models")
    models.vgg19 = lambda weights: asked.append(weights) or tiny_vgg()
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    images = photographs(32)
    maps = vgg_features(layers=["relu2_1", "relu1_2"])(images)
    assert asked == ["DEFAULT"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images / 2 + 0.5).permute(0, 2, 3, 1) - mean) / std
    layers = tiny_vgg().features
    early = layers[:4](x.permute(0, 3, 1, 2))
    torch.testing.assert_close(maps[1], early)
    torch.testing.assert_close(maps[0], layers[4:7](early))


def test_vgg_transfers(stripes):
    features = vgg_features(tiny_vgg(), ["relu1_1", "relu2_1"])
    china, flower = photographs(32).split(1)
    made = transfer(china, flower, features, style_weight=10.0, steps=20, content_layers=[1])
    grams = [gram(m) for m in features(flower)]
    assert style_loss(features(made), grams) < style_loss(features(china), grams) / 3


def test_without_torchvision_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"pip install torchvision.*RandomFeatures"):
        vgg_features()


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def unreachable(weights):
        raise urllib.error.URLError("no network")

    models = types.ModuleType("torchvision.models")
    models.vgg19 = unreachable
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    with pytest.raises(OSError, match=r"VGG-19 cannot be downloaded .*no network.*RandomFeatures"):
        vgg_features()


def test_a_torchvision_built_for_another_torch_is_named(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ImportError, match="the version that fits your torch"):
        vgg_features()


@pytest.mark.parametrize("layers", [["relu9_1"], []])
def test_unknown_layers_are_named(layers):
    with pytest.raises(ValueError, match="some of relu1_1, relu1_2, relu2_1, relu3_1; got"):
        VGGFeatures(tiny_vgg().features, layers)


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must be rising"),
        ({"scales": (2, 1)}, "scales must be rising"),
        ({"scales": (0, 1)}, "scales must be rising"),
        ({"channels": 0}, "channels, in_channels and kernel must be positive"),
        ({"kernel": 4}, "kernel odd; got 32, 3 and 4"),
    ],
)
def test_filters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RandomFeatures(**options)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 19)])
def test_images_that_do_not_fit_the_filters(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\) with sides of at"):
        RandomFeatures()(torch.zeros(shape))


IMAGE = torch.zeros(2, 1, 16, 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"content": IMAGE[0]}, r"content must be images \(B, C, H, W\).*\(1, 16, 16\)"),
        ({"content": IMAGE.int()}, "content must be images .* floating point"),
        ({"style": "bold"}, "style must be images .*str"),
        ({"style": IMAGE + 1.5}, r"style must lie in \[-1, 1\]; got values from 1.5 to 1.5"),
        ({"content": IMAGE * float("nan")}, r"content must lie in \[-1, 1\]"),
        ({"style": IMAGE.expand(-1, 3, -1, -1)}, "style must have the channels of content"),
        ({"style": torch.cat([IMAGE, IMAGE[:1]])}, "as many images, or one"),
        ({"style_weight": -1.0}, "weights must be finite and not negative"),
        ({"smoothness": float("nan")}, "weights must be finite and not negative"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"content_layers": [2]}, r"content_layers must be some of 0 to 1; got \[2\]"),
        ({"style_layers": []}, r"style_layers must be some of 0 to 1; got \[\]"),
    ],
)
def test_what_transfer_refuses(changed, message):
    options = {"content": IMAGE, "style": IMAGE, "features": RandomFeatures(**SMALL), "steps": 1}
    with pytest.raises(ValueError, match=message):
        transfer(**{**options, **changed})


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        transfer(IMAGE, IMAGE, RandomFeatures(**SMALL))
