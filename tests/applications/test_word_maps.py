"""Attention maps by word, against attention that is set by hand."""

import pytest
import torch

from course_lib import CosineVP, NetDenoiser
from course_lib.applications import ConditionedDenoiser, Conditioner, word_maps
from course_lib.data import VOCABULARY
from course_lib.nets import UNet, attention_maps
from course_lib.nets.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = UNet(width=8, heads=2, context_dim=8)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)
    torch.nn.init.normal_(encoder.word.weight)
    return ConditionedDenoiser(NetDenoiser(net, CosineVP(), "v"), Conditioner(encoder)).double()


@pytest.fixture
def x0(generator):
    return torch.randn(2, 1, 16, 8, generator=generator, dtype=torch.float64).clamp(-1, 1)


def test_tokens_are_named_and_share_all_attention(model, x0):
    words, maps = word_maps(model, x0, "A bold seven!")
    assert words == ["(none)", "(begin)", "a", "bold", "seven", "(end)"]
    assert maps.shape == (2, 6, 8, 4)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 8, 4).double(), rtol=0, atol=1e-12)


def test_one_time_is_one_look_of_the_network(model, x0):
    _, maps = word_maps(model, x0, "bold", times=[0.4], seed=3)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=x0.dtype)
    t = torch.full((2,), 0.4, dtype=torch.float64)
    cond = model.encode_condition(["bold", "bold"])
    (weights,) = attention_maps(model.denoiser.net, model.path.sample(x0, t, eps), t, cond)
    wanted = weights.mean(1)[:, :, [0, 2, 3, 4]].mT.reshape(2, 4, 8, 4)  # 1: the label, not given
    torch.testing.assert_close(maps, wanted, rtol=0, atol=1e-12)


def test_times_are_averaged(model, x0):
    both = word_maps(model, x0, "bold", times=[0.4, 0.4]).maps
    first = word_maps(model, x0, "bold", times=[0.4]).maps
    assert not torch.allclose(both, first, atol=1e-6)  # the second has noise of its own
    third = 2 * both - first
    torch.testing.assert_close(third.sum(1), torch.ones(2, 8, 4).double(), rtol=0, atol=1e-12)
    assert bool((third > 0).all())


def test_a_layer_that_looks_at_one_place_with_one_word(x0):
    torch.manual_seed(0)
    net = UNet(width=8, heads=1, context_dim=8)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=0, heads=1)
    model = ConditionedDenoiser(NetDenoiser(net, CosineVP(), "v"), Conditioner(encoder)).double()
    cross = net.attention.cross
    with torch.no_grad():  # the key of "bold" is large along the query that all positions have
        encoder.position.zero_()
        encoder.word.weight.zero_()
        encoder.word.weight[VOCABULARY.index("bold"), 0] = 1.0
        net.condition.null_token.zero_()
        for layer in (cross.query, cross.key_value):
            layer.weight.zero_()
            layer.bias.zero_()
        cross.query.bias[0] = 1.0
        cross.key_value.weight[0, 0] = 10.0
    words, maps = word_maps(model, x0, "a bold seven")
    tokens, _ = encoder(torch.tensor([[VOCABULARY.index("bold")]]))
    logit = 10 * tokens[0, 0, 0] / 4  # 16 channels: the root is 4
    wanted = logit.exp() / (logit.exp() + len(words) - 1)
    bold = words.index("bold")
    torch.testing.assert_close(maps[:, bold], wanted.expand(2, 8, 4), rtol=1e-6, atol=1e-9)


def test_what_does_not_fit(model, x0):
    with pytest.raises(TypeError, match="denoiser must be a ConditionedDenoiser; got NetDenoiser"):
        word_maps(model.denoiser, x0, "a seven")
    with pytest.raises(ValueError, match="unknown word 'sevn'"):
        word_maps(model, x0, "a sevn")
