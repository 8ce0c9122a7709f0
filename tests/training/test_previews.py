import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipe import PLAIN

from course_lib import sample
from course_lib.cli import train_recipe
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.plotting.images import tile
from course_lib.training.batches import Batches
from course_lib.training.recipe import recipe_parser

SHAPE = (20, 1, 8, 8)


@pytest.fixture
def recipe(tiny):
    return Path(tiny)


def trained(recipe, *flags, **options):
    """The tiny recipe, with dropout of conditions and an average, trained for 12 steps."""
    return train_recipe(recipe_parser(recipe).parse_args(list(flags)), **options)


def assert_same(a, b):
    assert torch.equal(a.losses, b.losses)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def shown(path):
    with Image.open(path) as found:
        return np.asarray(found)


def test_grids_show_the_average_of_their_step(recipe, tmp_path):
    trained(recipe, "--sample-every", "6", "--scale", "2", checkpoint=tmp_path)
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step-000000006.png", "step-000000012.png"]
    cond = torch.arange(20) % 10
    for steps, file in zip((6, 12), files, strict=True):
        guided = ClassifierFreeGuidance(trained(recipe, steps=steps), 2.0)
        assert np.array_equal(shown(file), tile(sample(guided, SHAPE, cond=cond), 10))


def test_without_labels_nothing_is_asked_for(recipe, tmp_path):
    plain = tmp_path / "plain.yaml"
    plain.write_text(PLAIN)
    model = trained(plain, "--sample-every", "2", checkpoint=tmp_path, steps=2)
    found = shown(tmp_path / "samples" / "step-000000002.png")
    assert np.array_equal(found, tile(sample(model, SHAPE), 10))


def test_sample_images_do_not_disturb_the_run(recipe, tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = trained(recipe)
    assert_same(trained(recipe, "--sample-every", "1", checkpoint=tmp_path), whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(trained(recipe, seed=1).losses, whole.losses)


def test_killed_and_resumed_with_sample_images_is_bit_identical(recipe, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    draw = Batches.batch

    def killed(self, step, *where):
        if step == 8:
            raise Killed
        return draw(self, step, *where)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", killed)
        with pytest.raises(Killed):
            trained(recipe, "--sample-every", "3", checkpoint=tmp_path)
    before = (tmp_path / "samples" / "step-000000006.png").read_bytes()
    resumed = trained(recipe, "--sample-every", "3", checkpoint=tmp_path)
    assert_same(resumed, trained(recipe))
    assert (tmp_path / "samples" / "step-000000006.png").read_bytes() == before
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_tensorboard_takes_the_images(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"checkpoint": tmp_path, "logger": "tensorboard"}
    model = trained(recipe, "--sample-every", "6", **options)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0"))
    events.Reload()
    found = events.Images("samples")
    assert [image.step for image in found] == [6, 12]
    cond = torch.arange(20) % 10
    with Image.open(io.BytesIO(found[1].encoded_image_string)) as picture:
        assert np.array_equal(np.asarray(picture), tile(sample(model, SHAPE, cond=cond), 10))
    assert not (tmp_path / "samples").exists()


def test_csv_takes_no_images_so_files_do(recipe, tmp_path):
    trained(recipe, "--sample-every", "12", checkpoint=tmp_path, logger="csv")
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000000012.png"]


def test_wandb_takes_the_images(recipe, tmp_path, monkeypatch):
    from lightning.pytorch import loggers

    logged = []

    class Own(loggers.CSVLogger):
        def log_image(self, key, images, step):
            logged.append((key, step, [image.shape for image in images]))

    monkeypatch.setattr(loggers, "WandbLogger", lambda save_dir: Own(save_dir, name="wandb"))
    trained(recipe, "--sample-every", "6", checkpoint=tmp_path, logger="wandb")
    assert logged == [("samples", step, [(18, 90, 4)]) for step in (6, 12)]


def test_what_draws_nothing_has_no_sample_images(tmp_path):
    from course_lib.training.recipe import recipe_path

    with pytest.raises(ValueError, match=r"sample_every must be 0 for a Digit.*got 3"):
        trained(recipe_path("classifier_digits"), "--sample-every", "3", checkpoint=tmp_path)
