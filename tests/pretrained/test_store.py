import json

import pytest
import torch
from torch import nn

from course_lib import pretrained
from course_lib.nets.classifier import DigitClassifier
from course_lib.pretrained import store
from course_lib.training.recipe import recipes

SPEC = {
    "class_path": "course_lib.nets.classifier.DigitClassifier",
    "init_args": {"image_size": 8, "width": 4},
}
FIELDS = {"file", "sha256", "model", "images", "recipe", "commit", "seed", "steps", "metrics"}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    store.save_pretrained(DigitClassifier(8, width=4), "small", {"model": SPEC}, tmp_path)
    return tmp_path


def test_what_is_saved_is_loaded_in_half_precision(folder):
    torch.manual_seed(0)
    original, state = DigitClassifier(8, width=4), torch.get_rng_state()
    loaded = pretrained.load_pretrained("small", folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    for mine, first in zip(loaded.parameters(), original.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, first.half().float())
    assert pretrained.available(folder) == ["small"]


def test_buffers_keep_their_precision():
    model = nn.BatchNorm1d(2).double()
    stored = store._half(model)
    assert stored["weight"].dtype == torch.float16
    assert stored["running_mean"].dtype == torch.float64


def test_entries_are_added_and_replaced(folder):
    for name, seed in (("other", 0), ("small", 1)):
        info = {"model": SPEC, "seed": seed}
        store.save_pretrained(DigitClassifier(8, width=4), name, info, folder)
    assert pretrained.available(folder) == ["other", "small"]
    assert pretrained.pretrained_info("small", folder)["seed"] == 1


def test_damaged_missing_and_unknown_files_are_refused(folder):
    path = folder / "small.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'small' are damaged: .*SHA-256"):
        pretrained.load_pretrained("small", folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"'small' are missing: .*course-lib train small"):
        pretrained.load_pretrained("small", folder)
    with pytest.raises(ValueError, match="name must be one of small; got 'large'"):
        pretrained.load_pretrained("large", folder)


def test_empty_folder(tmp_path):
    assert pretrained.available(tmp_path) == []
    with pytest.raises(ValueError, match=r"\(none\)"):
        pretrained.pretrained_info("small", tmp_path)


@pytest.mark.parametrize("name", pretrained.available())
def test_every_model_that_ships_loads_and_is_described(name):
    info = pretrained.pretrained_info(name)
    assert set(info) == FIELDS
    assert info["recipe"] in recipes()
    assert info["metrics"]
    model = pretrained.load_pretrained(name)
    assert all(p.isfinite().all() for p in model.parameters())


def test_classifiers_ship_and_are_good():
    assert {"digits-classifier", "mnist-classifier"} <= set(pretrained.available())
    accuracy = {
        name: pretrained.pretrained_info(f"{name}-classifier")["metrics"]["test_accuracy"]
        for name in ("digits", "mnist")
    }
    assert accuracy["digits"] > 0.97
    assert accuracy["mnist"] > 0.99


def test_all_together_stay_under_twenty_megabytes():
    assert sum(path.stat().st_size for path in store.FOLDER.glob("*.safetensors")) < 20e6
    manifest = json.loads((store.FOLDER / "manifest.json").read_text())
    files = {path.name for path in store.FOLDER.glob("*.safetensors")}
    assert {entry["file"] for entry in manifest.values()} == files
