"""What samples are: images, points, latents; and what is noted of it."""

import json

import pytest
import torch

from course_lib import data
from course_lib.cli import SampleSpace
from course_lib.cli.autoencoders import find_autoencoder
from course_lib.data.latents import RECORD, write_latents
from course_lib.plotting.images import tile
from course_lib.plotting.points import points_picture


@pytest.fixture
def folder(tmp_path):
    """Latents of three classes."""
    x = torch.randn(20, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    write_latents(tmp_path, 0, x, torch.arange(20) % 3)
    return tmp_path


def kind(space):
    return space.shape, space.classes, space.points, space.encoded


def test_images():
    space = SampleSpace("digits", image_size=16, channels=3, labels=True)
    assert kind(space) == ((3, 16, 16), 10, False, False)
    x, labels = space.examples("test")
    assert x.shape == (297, 3, 16, 16)
    assert labels.shape == (297,)
    assert space.decode(x) is x
    assert (space.picture(x[:6], None, 3, gap=2) == tile(x[:6], 3, 2)).all()


def test_points():
    space = SampleSpace("eight_gaussians", labels=True)
    assert kind(space) == ((2,), 8, True, False)
    train, test = (space.examples(split) for split in ("train", "test"))
    assert train[0].shape == (50_000, 2)
    assert test[0].shape == (10_000, 2)
    assert not torch.equal(train[0][:10], test[0][:10])
    assert torch.equal(test[1], data.eight_gaussians_labels(test[0]))
    x, labels = test[0][:100], test[1][:100]
    assert space.decode(x) is x
    assert (space.picture(x, labels, 3, gap=2) == points_picture(x, labels)).all()
    assert SampleSpace("spirals").examples("train")[1] is None


def test_latents_of_images():
    space = SampleSpace("mnist", autoencoder="mnist-vae", labels=True)
    assert kind(space) == ((64,), 10, False, True)


def test_images_are_encoded_and_latents_decoded(monkeypatch, generator):
    coder = find_autoencoder("mnist-vae")
    images = coder.decode(torch.randn(600, 64, generator=generator))
    monkeypatch.setattr("course_lib.cli.spaces.recipe_data", lambda *_: (images, None))
    space = SampleSpace("mnist", autoencoder="mnist-vae")
    assert torch.equal(space.load("test")[0], images)
    x, _ = space.examples("test")
    assert x.shape == (600, 64)
    assert torch.equal(space.examples("test")[0], x)  # always the same draws
    assert not torch.equal(space.examples("train")[0], x)
    assert torch.equal(coder.encode(images, torch.Generator().manual_seed(1)), x)
    assert torch.equal(space.decode(x), coder.decode(x))
    assert (space.decode(x) - images).square().mean() < 0.02
    assert space.picture(space.decode(x[:2]), None, 2, gap=0).shape == (28, 56, 4)


def test_latents_of_a_folder(folder):
    space = SampleSpace(str(folder), labels=True)
    assert kind(space) == ((4, 2, 2), 3, False, True)
    for split, length in (("train", 18), ("test", 2)):
        x, labels = space.examples(split)
        assert (x.shape, labels.shape) == ((length, 4, 2, 2), (length,))
    for see in (space.prepare, lambda: space.decode(x)):
        with pytest.raises(
            ValueError, match=r"autoencoder must be named \(--autoencoder\), to see"
        ):
            see()


def test_a_folder_names_its_autoencoder_unless_another_is_named(folder):
    (folder / RECORD).write_text(json.dumps({"autoencoder": "theirs"}))
    assert SampleSpace(str(folder)).autoencoder == "theirs"
    assert SampleSpace(str(folder), autoencoder="mine").autoencoder == "mine"
    with pytest.raises(ValueError, match=r"one of .*mnist-vae.*got 'theirs'"):
        SampleSpace(str(folder)).prepare()


@pytest.mark.parametrize(
    "options",
    [
        {"data": "digits", "image_size": None, "channels": 1, "labels": False},
        {"data": "digits", "image_size": 12, "channels": 3, "labels": True},
        {"data": "pinwheel", "image_size": None, "channels": 1, "labels": False},
        {
            "data": "mnist",
            "image_size": 28,
            "channels": 1,
            "labels": True,
            "autoencoder": "mnist-vae",
        },
    ],
)
def test_what_is_noted_is_what_was_given(options):
    space = SampleSpace(**options)
    assert space.note == options
    assert SampleSpace.of({**space.note, "fit": {}, "model": None}) == space


def test_what_is_noted_of_a_folder_is_enough_without_it(folder):
    space = SampleSpace(str(folder), autoencoder="mnist-vae", labels=True)
    noted = json.loads(json.dumps(space.note))
    for file in folder.iterdir():
        file.unlink()
    assert SampleSpace.of(noted) == space
    with pytest.raises(ValueError, match="holds no latents"):
        SampleSpace.of(noted).load("train")


def test_fields_left_out_have_their_defaults():
    assert SampleSpace.of({"data": "mnist", "fit": {}}) == SampleSpace("mnist")
    assert SampleSpace("mnist").image_size is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "cats"}, "data must be one of digits, mnist, eight_gaussians, .*got 'cats'"),
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"data": "pinwheel", "image_size": 8}, "image_size and channels must be left out for"),
        ({"data": "pinwheel", "channels": 3}, "must be left out for data pinwheel"),
        (
            {"data": "pinwheel", "labels": True},
            "labels must be false: data pinwheel have no classes",
        ),
        (
            {"data": "pinwheel", "autoencoder": "mnist-vae"},
            "autoencoder must be left out for data pin",
        ),
        ({"data": "mnist", "autoencoder": "cats"}, "one of .*got 'cats'"),
        ({"data": "mnist", "autoencoder": "digits-ddpm"}, "digits-ddpm holds a NetDenoiser"),
        ({"data": "digits", "autoencoder": "mnist-vae"}, "images must have side 28; got 8"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        SampleSpace(**options)


def test_images_of_an_autoencoder_have_its_channels():
    space = SampleSpace("mnist", autoencoder="mnist-vae")
    three = torch.zeros(2, 3, 28, 28)
    with pytest.raises(ValueError, match="images must have 1 channels for this autoencoder; got 3"):
        space.coder.encode(three, torch.Generator())
