import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipe import PLAIN

from course_lib import cli, pretrained, sample
from course_lib.cli import SampleSpace, drawing, models
from course_lib.cli.drawing import draw_samples
from course_lib.cli.sample import write_images
from course_lib.guidance import ClassifierFreeGuidance, NegativePrompt
from course_lib.nets.classifier import DigitClassifier
from course_lib.training.checkpoints import newest


@pytest.fixture(scope="module")
def model(trained):
    return pretrained.load_pretrained("tiny", trained)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    """File of an unconditional model."""
    folder = tmp_path_factory.mktemp("unconditional")
    recipe = folder / "plain.yaml"
    recipe.write_text(PLAIN)
    assert cli.main(["train", str(recipe), "--save-dir", str(folder), "--steps", "1"]) == 0
    return folder / "plain.safetensors"


def draw(trained, *options):
    """Run the command on the tiny model."""
    return cli.main(["sample", "--checkpoint", str(trained), *options])


def pixels(image):
    """(C, H, W) in [-1, 1] as bytes."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte()


def test_single_images_are_those_of_sample_guided(trained, model, tmp_path, capsys):
    options = "--label 4 7 --num-samples 5 --scale 2 --solver ddim --steps 6 --seed 3 --individual"
    assert draw(trained, *options.split(), "--output", str(tmp_path / "a" / "b.png")) == 0
    assert "b-000.png and the next: 5 images" in capsys.readouterr().out
    guided, cond = ClassifierFreeGuidance(model, 2.0), torch.tensor([4, 7, 4, 7, 4])
    wanted = sample(guided, (5, 1, 8, 8), solver="ddim", steps=6, seed=3, cond=cond)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == [f"b-00{i}.png" for i in range(5)]
    for file, image in zip(files, wanted, strict=True):
        with Image.open(file) as found:
            assert found.mode == "L"
            assert np.array_equal(np.asarray(found), pixels(image)[0].numpy())


def test_a_grid_is_the_default_and_shows_pixels_large(trained, model, tmp_path, capsys):
    path = tmp_path / "grid.png"
    assert draw(trained, "--num-samples", "5", "--output", str(path)) == 0
    assert capsys.readouterr().out == f"{path}: 5 images\n"
    wanted = sample(model, (5, 1, 8, 8))  # no label: the condition that means none
    with Image.open(path) as found:
        picture = np.asarray(found)
    assert picture.shape == (2 * 68, 3 * 68, 4)
    for i, image in enumerate(wanted):
        row, column = 68 * (i // 3) + 2, 68 * (i % 3) + 2
        seen = picture[row : row + 64 : 8, column : column + 64 : 8, 0]
        assert np.array_equal(seen, pixels(image)[0].numpy())


def test_colour_stays_colour(tmp_path):
    image = torch.tensor([1.0, -1.0, 0.0])[:, None, None].expand(3, 4, 4)
    write_images(image[None], tmp_path / "c.png", individual=True)
    with Image.open(tmp_path / "c-000.png") as found:
        assert found.mode == "RGB"
        assert found.getpixel((2, 2)) == (255, 0, 128)


def test_negative_label_leads_away(trained, model, tmp_path):
    options = "--label 3 --negative-label 8 --scale 3 --num-samples 2 --individual"
    assert draw(trained, *options.split(), "--output", str(tmp_path / "n.png")) == 0
    prompt = NegativePrompt(model, torch.tensor([8]), 3.0)
    wanted = sample(prompt, (2, 1, 8, 8), cond=torch.tensor([3, 3]))
    with Image.open(tmp_path / "n-001.png") as found:
        assert np.array_equal(np.asarray(found), pixels(wanted[1])[0].numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--label 12", "--label must be 0 to 9; got 12"),
        ("--label 1 -1", "--label must be 0 to 9; got -1"),
        ("--label 1 --negative-label 10", "--label must be 0 to 9; got 10"),
        ("--label four", "label"),
        ("--scale 2", "--scale and --negative-label need a --label"),
        ("--label 4 --scale nan", '"scale"'),
        ("--negative-label 2", "--scale and --negative-label need a --label"),
        ("--num-samples 0", "num_samples must be at least 1; got 0"),
        ("--steps 0", "steps must be at least 1; got 0"),
    ],
)
def test_wrong_options(trained, options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert draw(trained, *options.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_labels_need_a_conditional_model(unconditional, tmp_path, capsys):
    assert draw(unconditional, "--label", "4") == 2
    assert "--label needs a conditional model" in capsys.readouterr().err
    assert draw(unconditional, "--output", str(tmp_path / "a.png")) == 0


# --- what a checkpoint may be -------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_folder_file_and_checkpoint_lead_to_the_same_model(trained, model):
    for name in (trained, trained / "tiny.safetensors"):
        found, images = models.find_model(str(name))
        assert same(found, model)
        assert images == {"data": "digits", "image_size": None, "channels": 1, "labels": True}
    found, images = models.find_model(str(newest(trained)))
    assert images["labels"]
    for mine, stored in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine.half(), stored.half())


def test_name_of_a_pretrained_model():
    name = next(name for name in pretrained.available() if "classifier" not in name)
    found, images = models.find_denoiser(name)
    assert same(found, pretrained.load_pretrained(name))
    assert images["data"] in ("digits", "mnist")


def test_manifest_without_images_asks_the_recipe(tmp_path):
    spec = {
        "class_path": "course_lib.nets.classifier.DigitClassifier",
        "init_args": {"image_size": 8, "width": 2},
    }
    info = {"model": spec, "recipe": "classifier_digits", "steps": 1}
    pretrained.save_pretrained(DigitClassifier(8, width=2), "old", info, tmp_path)
    images = {"data": "digits", "image_size": None, "channels": 1, "labels": True}
    assert SampleSpace.of(models.find_model(str(tmp_path))[1]) == SampleSpace(**images)
    with pytest.raises(ValueError, match="holds a DigitClassifier, which draws nothing"):
        models.find_denoiser(str(tmp_path))


def test_newer_checkpoint_comes_before_older_weights(tiny, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tiny"]["steps"] = 11
    (folder / "manifest.json").write_text(json.dumps(manifest))
    weights = next(models.find_model(str(folder))[0].parameters())
    assert not torch.equal(weights, weights.half().float())  # a checkpoint is not rounded
    (folder / "manifest.json").unlink()
    assert torch.equal(next(models.find_model(str(folder))[0].parameters()), weights)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


def change_model(run, checkpoint):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["tiny"]["model"]["init_args"]["net"]["init_args"]["dim"] = 24
    (run / "manifest.json").write_text(json.dumps(manifest))


def change_checkpoint(run, checkpoint):
    from course_lib.training.checkpoint_io import AtomicCheckpointIO

    stored = torch.load(checkpoint, weights_only=True)
    stored["recipe"]["model"]["init_args"]["net"]["init_args"]["dim"] = 24
    AtomicCheckpointIO().save_checkpoint(stored, checkpoint)
    (run / "manifest.json").unlink()


def forget_recipe(run, checkpoint):
    from course_lib.training.checkpoint_io import AtomicCheckpointIO

    stored = torch.load(checkpoint, weights_only=True)
    del stored["recipe"]
    AtomicCheckpointIO().save_checkpoint(stored, checkpoint)


def damage_checkpoint(run, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])


def add_model(run, checkpoint):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "second": manifest["tiny"]}))


@pytest.mark.parametrize(
    ("damage", "named", "message"),
    [
        (change_model, "", "checkpoint tiny.safetensors does not match its model: .*size mismatch"),
        (change_checkpoint, "", "step-000000012.ckpt does not match its model"),
        (forget_recipe, "step-000000012.ckpt", "does not say how its model is built"),
        (damage_checkpoint, "step-000000012.ckpt", "damaged or incomplete"),
        (add_model, "", "holds second, tiny: name one .safetensors"),
        (lambda run, _: (run / "tiny.safetensors").write_bytes(b""), "", "damaged"),
        (lambda run, _: (run / "tiny.safetensors").unlink(), "", "missing"),
        (
            lambda run, _: (run / "manifest.json").unlink(),
            "tiny.safetensors",
            "name must be one of (none); got 'tiny'",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(run, damage, named, message, capsys):
    damage(run, newest(run))
    assert draw(run / named) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in message.split(".*"):
        assert part in err


# --- batches ------------------------------------------------------------------------------------


def test_batches_join_and_the_first_is_that_of_sample(model, monkeypatch):
    cond = torch.arange(10)
    monkeypatch.setattr(drawing, "BATCH", 4)
    images = draw_samples(model, (1, 8, 8), 10, labels=cond, seed=5, steps=3)
    assert images.shape == (10, 1, 8, 8)
    first = sample(model, (4, 1, 8, 8), cond=cond[:4], seed=5, steps=3)
    torch.testing.assert_close(images[:4], first, rtol=0, atol=0)
    assert not torch.allclose(images[4:8], images[:4], atol=0.1)  # noise of its own
    again = draw_samples(model, (1, 8, 8), 6, labels=cond[:6], seed=5, steps=3)
    torch.testing.assert_close(images[:4], again[:4], rtol=0, atol=0)


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_counts_the_steps_of_all_batches(model, monkeypatch, progress):
    class Bar(list):
        def __init__(self, **options):
            self.options = options
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            self.append(1)

    bars = []
    monkeypatch.setattr(drawing, "BATCH", 4)
    monkeypatch.setattr(drawing, "tqdm", Bar)
    draw_samples(model, (1, 8, 8), 9, steps=3, solver="heun", progress=progress)
    (bar,) = bars
    assert bar.options["total"] == len(bar) == 3 * 3
    assert bar.options["desc"] == "heun"
    assert bar.options["disable"] is (None if progress else True)
