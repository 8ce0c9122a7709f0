"""Models that are trained with captions, on the command line; scikit-learn's digits for MNIST."""

import json

import pytest
import torch
from pictures import handwriting

from course_lib import cli, data, pretrained
from course_lib.cli import drawing, measuring
from course_lib.data import VOCABULARY, captions, follows, measure, normalised, tokenize
from course_lib.data.tokenizer import MAX_LENGTH

SPACE = "data: mnist\nimage_size: 32\nlabels: true\ncaptions: 3\n"
ENCODER = """
      class_path: course_lib.nets.text_encoder.TextEncoder
      init_args: {vocabulary: 61, dim: 8, depth: 1, heads: 2}
"""
CLIP = f"""
model:
  class_path: course_lib.nets.clip.CLIP
  init_args:
    text_encoder: {ENCODER}
    width: 4
    dim: 8
{SPACE}
fit:
  objective: {{class_path: course_lib.nets.clip.ContrastiveLoss, init_args: {{shift: 1}}}}
  steps: 3
  batch_size: 8
  progress: false
"""
TEXT = f"""
model:
  class_path: course_lib.applications.text.ConditionedDenoiser
  init_args:
    denoiser:
      class_path: course_lib.denoisers.NetDenoiser
      init_args:
        net:
          class_path: course_lib.nets.unet.UNet
          init_args: {{width: 8, heads: 2, patch: 4, context_dim: 8}}
        path: {{class_path: course_lib.paths.Linear}}
        predicts: velocity
    conditioner:
      class_path: course_lib.applications.text.Conditioner
      init_args:
        text_encoder: {ENCODER.replace("      ", "          ")}
{SPACE}
scale: 2.0
fit:
  objective: {{class_path: course_lib.applications.text.CaptionLoss}}
  steps: 3
  batch_size: 8
  progress: false
"""


@pytest.fixture(scope="module", autouse=True)
def mnist():
    """Digits of 28x28 in the place of MNIST; more of them for training."""
    images, labels = handwriting()
    images = normalised(images)

    def load(split, size=28):
        own = slice(100, 550) if split == "train" else slice(0, 100)
        frame = (size - 28) // 2
        return torch.nn.functional.pad(images[own], 4 * (frame,), value=-1), labels[own]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "mnist", load)
        yield load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both recipes, and a run of each."""
    folder = tmp_path_factory.mktemp("captions")
    for name, recipe in (("clip", CLIP), ("text", TEXT)):
        (folder / f"{name}.yaml").write_text(recipe)
        command = ["train", str(folder / f"{name}.yaml"), "--save-dir", str(folder / name)]
        assert cli.main(command) == 0
    return folder


def space():
    return cli.SampleSpace("mnist", image_size=32, labels=True, captions=3)


def test_images_are_varied_and_each_has_its_captions(mnist):
    images, (labels, ids) = space().examples("train")
    assert images.shape == (450, 1, 32, 32)
    assert torch.equal(labels, mnist("train")[1])
    assert ids.shape == (450, 3, MAX_LENGTH)
    assert torch.equal(images, space().load("train")[0])  # always the same draws
    sizes = measure(images).size * 32
    assert sizes.min() < 15 < 20.5 < sizes.max()  # MNIST's own all have 20
    texts = [" ".join(VOCABULARY[i] for i in row if i > 2) for row in ids.flatten(0, 1).tolist()]
    told = follows(images.repeat_interleave(3, 0), texts, labels.repeat_interleave(3))
    assert (told[~told.isnan()] == 1).all()
    assert (ids[:, 0] != ids[:, 1]).any(1).double().mean() > 0.9
    assert space().examples("test")[0].shape == (100, 1, 32, 32)


def test_a_space_with_captions_is_noted_and_made_again():
    noted = json.loads(json.dumps(space().note))
    assert noted["captions"] == 3
    assert cli.SampleSpace.of(noted) == space()
    assert cli.SampleSpace("mnist").note.get("captions") is None


@pytest.mark.parametrize(
    "options",
    [
        {"data": "digits", "labels": True},
        {"data": "mnist"},
        {"data": "mnist", "labels": True, "channels": 3},
        {"data": "mnist", "labels": True, "autoencoder": "mnist-vae"},
        {"data": "mnist", "labels": True, "captions": -1},
    ],
)
def test_captions_need_grey_digits_of_mnist_with_labels(options):
    with pytest.raises(ValueError, match="captions must be 0, or positive for data mnist with lab"):
        cli.SampleSpace(**{"captions": 2, **options})


def test_a_clip_is_measured_by_classes_and_captions(folder, mnist):
    model = pretrained.load_pretrained("clip", folder / "clip")
    found = cli.measure(model, space())
    assert found == pretrained.pretrained_info("clip", folder / "clip")["metrics"]
    names = ["a zero", "a one", "a two", "a three", "a four",
             "a five", "a six", "a seven", "a eight", "a nine"]  # fmt: skip
    texts, (plain, labels) = model.embed_texts(tokenize(names)[0]), mnist("test", 32)
    for key, images in (("", plain), ("_varied", space().load("test")[0])):
        nearest = (model.embed_images(images) @ texts.T).argmax(1)
        share = (nearest == labels).double().mean().item()
        assert found[f"zero_shot_accuracy{key}"] == pytest.approx(share, abs=1e-4)
    assert 0 <= found["recall_at_1"] <= found["recall_at_10"] <= 1


def test_a_text_model_is_measured_by_what_its_prompts_ask(folder, mnist, monkeypatch):
    """Samples that are the test images do what their captions say; others do not."""
    model = pretrained.load_pretrained("text", folder / "text")
    images, labels = space().load("test")
    asked = {}

    def draw(model, shape, n, **options):
        asked.update(options)
        return samples[:n]

    monkeypatch.setattr(measuring, "draw_samples", draw)
    samples = images
    found = cli.measure(model, space(), scale=2.0, steps=3)
    prompts = captions(images, labels, torch.Generator().manual_seed(2))
    assert asked["labels"] == prompts
    assert (asked["scale"], asked["steps"]) == (2.0, 3)
    agreements = {k: v for k, v in found.items() if k.endswith("_agreement")}
    assert len(agreements) == 5
    assert agreements.pop("class_agreement") > 0.5
    assert min(agreements.values()) > 0.9
    assert found["frechet_test"] == pytest.approx(0, abs=0.01)
    samples = images.flip(0)
    other = cli.measure(model, space())
    assert other["class_agreement"] < 0.4
    assert other["size_agreement"] < 0.8


def test_training_measures_and_draws(folder):
    info = pretrained.pretrained_info("text", folder / "text")
    assert info["images"]["captions"] == 3
    assert info["metrics"]["scale"] == 2
    assert {"class_agreement", "weight_agreement", "frechet_test"} <= set(info["metrics"])
    model = pretrained.load_pretrained("text", folder / "text")
    picture = drawing.preview(model, space(), 2.0, "ddim", 2)
    assert picture.dtype == torch.zeros(1).byte().numpy().dtype
    assert picture.ndim == 3


def test_prompts_are_shared_out_over_batches(folder, monkeypatch):
    model = pretrained.load_pretrained("text", folder / "text")
    prompts, seen = ["a seven", "a bold 2", "nine"], []

    def remember(denoiser, shape, *, cond, **options):
        seen.append((shape[0], cond))
        return torch.zeros(shape)

    monkeypatch.setattr(drawing, "BATCH", 2)
    monkeypatch.setattr(drawing, "sample", remember)
    drawn = drawing.draw_samples(model, (1, 32, 32), 3, labels=prompts)
    assert drawn.shape == (3, 1, 32, 32)
    assert seen == [(2, prompts[:2]), (1, prompts[2:])]
