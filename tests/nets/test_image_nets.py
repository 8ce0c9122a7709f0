"""What holds for the U-Net and the DiT alike."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib.nets import CrossAttention, DiT, UNet, attention_maps

NULL = 3


def unet(**kwargs):
    return UNet(2, width=8, multipliers=(1, 2), heads=2, **kwargs)


def dit(**kwargs):
    return DiT(8, 2, patch=2, dim=16, depth=2, heads=2, **kwargs)


@pytest.fixture(params=[unet, dit], ids=["unet", "dit"])
def build(request):
    """A constructor of nets in float64 whose zero-initialised layers have been filled."""

    def make(**kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = request.param(**kwargs).double()
            for parameter in net.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return net

    return make


def images(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 2, 8, 8, dtype=torch.float64, generator=g)
    return x, torch.rand(batch, dtype=torch.float64, generator=g)


def text(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, 5, generator=g) < 0.5
    return torch.randn(batch, 5, 6, dtype=torch.float64, generator=g), mask


CONDITIONS = {
    "none": ({}, None),
    "labels": ({"num_classes": NULL}, torch.tensor([0, 2, 1, NULL])),
    "text": ({"context_dim": 6}, text()),
    **{
        way: ({"num_classes": NULL, "conditioning": way}, torch.tensor([0, 2, 1, NULL]))
        for way in ("concat", "cross_attention")
    },
}


def cut(cond, index):
    return tuple(part[index] for part in cond) if isinstance(cond, tuple) else cond[index]


@pytest.mark.parametrize("kind", CONDITIONS)
def test_output_is_zero_at_initialisation(kind):
    kwargs, cond = CONDITIONS[kind]
    x, t = images()
    for make in (unet, dit):
        out = make(**kwargs).double()(x, t, cond)
        assert out.shape == x.shape
        assert out.abs().max() == 0


@pytest.mark.parametrize("kind", CONDITIONS)
def test_gradient_reaches_every_parameter(build, kind):
    kwargs, cond = CONDITIONS[kind]
    net, (x, t) = build(**kwargs), images()
    net(x, t, cond).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_sample_depends_on_itself_alone(build, kind):
    kwargs, cond = CONDITIONS[kind]
    net, (x, t) = build(**kwargs), images()
    together = net(x, t, cond)
    for i in range(len(x)):
        alone = net(
            x[i : i + 1], t[i : i + 1], None if cond is None else cut(cond, slice(i, i + 1))
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_depends_on_x_t_and_cond(build, kind):
    kwargs, cond = CONDITIONS[kind]
    net, (x, t) = build(**kwargs), images()
    out = net(x, t, cond)
    assert (net(x + 0.1, t, cond) - out).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert (net(x, t + 0.1, cond) - out).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    if cond is not None:
        other = cut(cond, [1, 2, 3, 0])
        assert (net(x, t, other) - out).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_each_pixel_depends_on_all_pixels(build):
    net, (x, t) = build(), images(1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, t)[0, 0, 0, 0], x)
    assert gradient.abs().min() > 0


def test_no_label_is_the_last_label(build):
    net, (x, t) = build(num_classes=NULL), images()
    null = net(x, t, torch.full((4,), NULL))
    torch.testing.assert_close(net(x, t), null, rtol=0, atol=0)


def test_masked_tokens_have_no_effect(build):
    net, (x, t), (tokens, mask) = build(context_dim=6), images(), text()
    out = net(x, t, (tokens, mask))
    changed = torch.where(mask[:, :, None], tokens, 100.0)
    torch.testing.assert_close(net(x, t, (changed, mask)), out, rtol=1e-10, atol=1e-10)
    longer = torch.cat([tokens, tokens], 1), torch.cat([mask, mask & False], 1)
    torch.testing.assert_close(net(x, t, longer), out, rtol=1e-10, atol=1e-10)


def test_no_text_is_the_text_without_tokens(build):
    net, (x, t), (tokens, mask) = build(context_dim=6), images(), text()
    out = net(x, t)
    assert out.isfinite().all()
    torch.testing.assert_close(net(x, t, (tokens, mask & False)), out, rtol=1e-10, atol=1e-10)


def test_float32_agrees_with_float64(build):
    net, (x, t) = build(), images()
    want = net(x, t)
    got = net.float()(x.float(), t.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_forward_mode_and_second_derivatives_with_the_plain_kernel(build):
    net, (x, t) = build(), images(1)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda x: net(x, t), (x,), (direction,))
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(net(x, t).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    step = 1e-5 * direction
    with torch.no_grad():
        torch.testing.assert_close(
            slope, (net(x + step, t) - net(x - step, t)) / 2e-5, rtol=1e-5, atol=1e-5
        )
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_errors_name_the_argument(build):
    net, (x, t) = build(num_classes=NULL), images()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2, .*got \(4, 1, 8, 8\)"):
        net(x[:, :1], t)
    with pytest.raises(ValueError, match=r"t must have shape \(4,\), .*got \(1,\)"):
        net(x, t[:1])
    with pytest.raises(ValueError, match="cond must be labels 0 to 3"):
        net(x, t, torch.full((4,), 4))


def test_construction_leaves_one_of_two_conditions(build):
    with pytest.raises(ValueError, match="num_classes and context_dim"):
        build(num_classes=3, context_dim=6)


@pytest.mark.parametrize("kind", [kind for kind in CONDITIONS if kind != "none"])
def test_null_condition_is_none(build, kind):
    kwargs, cond = CONDITIONS[kind]
    net, (x, t) = build(**kwargs), images()
    absent = net(x, t)
    torch.testing.assert_close(net(x, t, net.null_condition(cond)), absent, rtol=0, atol=1e-12)
    assert (net(x, t, cond) - absent)[0].abs().max() > 1e-3


@pytest.mark.parametrize("cond", [torch.zeros(4, dtype=torch.int64), text()])
def test_null_condition_of_the_wrong_kind(build, cond):
    labels = isinstance(cond, torch.Tensor)
    net = build(**({"context_dim": 6} if labels else {"num_classes": NULL}))
    with pytest.raises(ValueError, match="cond must be"):
        net.null_condition(cond)
    with pytest.raises(ValueError, match="without num_classes and context_dim"):
        build().null_condition(cond)


def test_unknown_conditioning(build):
    with pytest.raises(ValueError, match="conditioning must be one of adaln, concat, cross_att"):
        build(num_classes=NULL, conditioning="film")


def test_attention_maps_are_the_weights_that_the_net_uses(build):
    kwargs, (tokens, mask) = CONDITIONS["text"]
    net, (x, t) = build(**kwargs), images()
    layers = [m for m in net.modules() if isinstance(m, CrossAttention)]
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, out: seen.append((m, i, out))) for m in layers]
    maps = attention_maps(net, x, t, (tokens, mask))
    for hook in hooks:
        hook.remove()
    assert len(maps) == len(layers)
    for weights, (layer, (_, (padded, keep)), out) in zip(maps, seen, strict=True):
        assert weights.shape[0] == 4
        assert weights.shape[3] == 6
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert weights.amax(dim=(1, 2))[~keep].abs().amax() == 0
        v = layer.key_value(padded).chunk(2, dim=-1)[1]
        v = v.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.out(mixed), out, rtol=1e-10, atol=1e-12)


def test_attention_maps_need_cross_attention(build):
    with pytest.raises(ValueError, match="must have cross-attention"):
        attention_maps(build(), *images())
