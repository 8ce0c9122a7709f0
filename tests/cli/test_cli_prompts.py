"""`course-lib sample --prompt`, with a text model of untrained weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib import NetDenoiser, cli, pretrained, sample
from course_lib.applications import ConditionedDenoiser, Conditioner
from course_lib.data import VOCABULARY
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.nets import UNet
from course_lib.nets.text_encoder import TextEncoder
from course_lib.paths import Linear

DENOISER = {
    "class_path": "course_lib.applications.text.ConditionedDenoiser",
    "init_args": {
        "denoiser": {
            "class_path": "course_lib.denoisers.NetDenoiser",
            "init_args": {
                "net": {
                    "class_path": "course_lib.nets.unet.UNet",
                    "init_args": {"width": 8, "heads": 2, "patch": 4, "context_dim": 8},
                },
                "path": {"class_path": "course_lib.paths.Linear"},
                "predicts": "velocity",
            },
        },
        "conditioner": {
            "class_path": "course_lib.applications.text.Conditioner",
            "init_args": {
                "text_encoder": {
                    "class_path": "course_lib.nets.text_encoder.TextEncoder",
                    "init_args": {
                        "vocabulary": len(VOCABULARY), "dim": 8, "depth": 1, "heads": 2,
                    },
                }
            },
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folder of a model that is asked in words. No layer is zero, so words matter."""
    torch.manual_seed(0)
    net = UNet(width=8, heads=2, patch=4, context_dim=8)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)
    model = ConditionedDenoiser(NetDenoiser(net, Linear(), "velocity"), Conditioner(encoder))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    space = {"data": "mnist", "image_size": 32, "labels": True, "captions": 2}
    info = {"model": DENOISER, "recipe": "text_mnist", "steps": 1, "images": space}
    folder = tmp_path_factory.mktemp("texts")
    pretrained.save_pretrained(model, "words", info, folder)
    return folder


def draw(folder, *options):
    return cli.main(["sample", "--checkpoint", str(folder), *options])


def pixels(image):
    return ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def drawn(folder):
    for file in sorted(folder.iterdir()):
        with Image.open(file) as found:
            yield np.asarray(found)


def test_prompts_in_turn_are_those_of_sample_guided(texts, tmp_path):
    options = ["--prompt", "a bold seven", "a thin 2", "--num-samples", "3", "--scale", "2"]
    output = ["--steps", "3", "--individual", "--output", str(tmp_path / "p.png")]
    assert draw(texts, *options, *output) == 0
    guided = ClassifierFreeGuidance(pretrained.load_pretrained("words", texts), 2.0)
    cond = ["a bold seven", "a thin 2", "a bold seven"]
    wanted = sample(guided, (3, 1, 32, 32), cond=cond, steps=3)
    found = list(drawn(tmp_path))
    assert len(found) == 3
    for image, picture in zip(wanted, found, strict=True):
        assert np.array_equal(pixels(image), picture)


def test_a_negative_prompt_leads_away(texts, tmp_path):
    options = ["--prompt", "a seven", "--negative-prompt", "9", "--scale", "40"]
    output = ["--num-samples", "2", "--steps", "3", "--individual"]
    assert draw(texts, *options, *output, "--output", str(tmp_path / "n.png")) == 0
    model = pretrained.load_pretrained("words", texts)
    led = NegativePrompt(model, ["9"], 40.0)
    wanted = sample(led, (2, 1, 32, 32), cond=["a seven"] * 2, steps=3)
    plain = sample(model, (2, 1, 32, 32), cond=["a seven"] * 2, steps=3)
    assert not torch.allclose(wanted, plain, atol=0.02)  # some levels of grey
    for image, picture in zip(wanted, drawn(tmp_path), strict=True):
        assert np.array_equal(pixels(image), picture)


def test_a_model_of_texts_still_takes_labels(texts, tmp_path):
    options = ["--label", "7", "--num-samples", "1", "--steps", "2", "--individual"]
    assert draw(texts, *options, "--output", str(tmp_path / "l.png")) == 0
    model = pretrained.load_pretrained("words", texts)
    wanted = sample(model, (1, 1, 32, 32), cond=torch.tensor([7]), steps=2)
    assert np.array_equal(pixels(wanted[0]), next(drawn(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--prompt", "a bald seven"],
            "unknown word 'bald' in 'a bald seven'; nearest known: bo",
        ),
        (["--prompt", "a seven", ""], "a prompt must have a word; got ''"),
        (["--prompt", "?!"], "a prompt must have a word; got '?!'"),
        (["--prompt", "a seven, not bold"], "'not' in 'a seven, not bold' is no word of it"),
        (["--prompt", "a " * 30], "a prompt must have at most 18 words; got 30"),
        (["--prompt", "a seven", "--negative-prompt", "sevn"], "unknown word 'sevn'"),
        (["--negative-prompt", "a seven"], "--negative-prompt needs a --prompt"),
        (["--prompt", "a seven", "--label", "7"], "--prompt and --label exclude each other"),
        (["--prompt", "a seven", "--negative-label", "7"], "--negative-label need a --label"),
    ],
)
def test_wrong_prompts_are_told_in_one_line(texts, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert draw(texts, *options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_prompts_need_a_model_of_texts(trained, capsys):
    assert draw(trained, "--prompt", "a seven") == 2
    assert "--prompt needs a model of texts, such as mnist-text" in capsys.readouterr().err
