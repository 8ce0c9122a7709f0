"""The widget, driven as a hand would, and what it draws."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib import Linear, NetDenoiser, sample
from course_lib.applications import ConditionedDenoiser, Conditioner, draw_prompt, prompt_widget
from course_lib.data import VOCABULARY
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.nets import UNet
from course_lib.nets.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = UNet(width=4, heads=1, context_dim=4)
    encoder = TextEncoder(len(VOCABULARY), dim=4, depth=1, heads=1)
    model = ConditionedDenoiser(NetDenoiser(net, Linear(), "velocity"), Conditioner(encoder))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def test_a_prompt_is_guided_and_a_negative_one_led_away_from(model):
    options = {"steps": 2, "seed": 4}
    cond = ["a seven"] * 3
    found = draw_prompt(model, "a seven", n=3, shape=(1, 8, 8), scale=5.0, **options)
    wanted = sample(ClassifierFreeGuidance(model, 5.0), (3, 1, 8, 8), cond=cond, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found = draw_prompt(model, "a seven", "9", n=3, shape=(1, 8, 8), scale=5.0, **options)
    wanted = sample(NegativePrompt(model, ["9"], 5.0), (3, 1, 8, 8), cond=cond, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser; got UNet"):
        draw_prompt(model.denoiser.net, "a seven")


def shown(picture):
    with Image.open(io.BytesIO(picture.value)) as found:
        return np.asarray(found)[..., 0]


def test_the_widget_draws_again_when_a_field_changes(model):
    widget = prompt_widget(model, "a seven", shape=(1, 8, 8), n=2, steps=1, zoom=2)
    asked, avoided, (scale, seed), picture, message = (
        w if i != 2 else w.children for i, w in enumerate(widget.children)
    )
    images = draw_prompt(model, "a seven", n=2, shape=(1, 8, 8), steps=1)
    pixels = ((images[1, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(shown(picture)[2:18:2, 22:38:2], pixels)
    for field, value in ((asked, "9"), (avoided, "a thin two"), (scale, 8.0), (seed, 1)):
        before = picture.value
        field.value = value
        assert picture.value != before
    assert message.value == ""


def test_what_is_wrong_with_a_prompt_stands_below_it(model):
    widget = prompt_widget(model, shape=(1, 8, 8), n=1, steps=1)
    asked, *_, picture, message = widget.children
    before = picture.value
    asked.value = "a <b>bald</b> seven"
    assert "unknown word" in message.value
    assert "&lt;b&gt;bald" in message.value
    assert picture.value == before
    asked.value = "a bold six"
    assert message.value == ""
    with pytest.raises(TypeError, match="denoiser must be a Denoiser; got int"):
        prompt_widget(3)
