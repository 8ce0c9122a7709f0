import json

import pytest
import torch
from safetensors.torch import save_file

from course_lib.data import latents, latents_info
from course_lib.data.latents import RECORD, write_latents


@pytest.fixture
def folder(tmp_path):
    """25 latents that are their own number, in two files, of three classes."""
    x = torch.arange(25.0)[:, None, None, None].expand(25, 2, 3, 3)
    labels = torch.arange(25) % 3
    write_latents(tmp_path, 0, x[:15], labels[:15])
    write_latents(tmp_path, 1, x[15:], labels[15:])
    return tmp_path


def test_every_tenth_is_for_testing(folder):
    x, labels = latents(folder, "test")
    assert x[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert labels.tolist() == [0, 1, 2]
    x, labels = latents(folder)
    assert x[:, 1, 2, 2].tolist() == [n for n in range(25) if n % 10]
    assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(labels, x[:, 0, 0, 0].long() % 3)


def test_what_a_folder_holds(folder):
    assert latents_info(folder) == ((2, 3, 3), 3, None)
    (folder / RECORD).write_text(json.dumps({"autoencoder": "some/where"}))
    assert latents_info(folder).autoencoder == "some/where"


def test_labels_may_be_missing_and_latents_flat(tmp_path):
    write_latents(tmp_path, 0, torch.zeros(11, 4))
    assert latents_info(tmp_path) == ((4,), 0, None)
    x, labels = latents(tmp_path)
    assert (x.shape, labels) == ((9, 4), None)


def test_files_of_others_are_read_in_any_precision(tmp_path):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2], dtype=torch.int32)
    save_file({"latents": x, "labels": labels}, tmp_path / "theirs.safetensors")
    found, classes = latents(tmp_path)
    assert torch.equal(found, x[1:])
    assert (classes.tolist(), classes.dtype) == ([1, 2], torch.int64)


def test_what_cannot_be_read(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for function in (latents, latents_info):
        with pytest.raises(ValueError, match=r"empty\d+ holds no latents .*course-lib encode"):
            function(empty)
    with pytest.raises(ValueError, match="split must be train or test; got 'all'"):
        latents(folder, "all")
    write_latents(folder, 2, torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"differ in \(shape, labels\).*False.*True"):
        latents(folder)
    save_file({"other": torch.zeros(1)}, folder / "latents-00002.safetensors")
    for function in (latents, latents_info):
        with pytest.raises(ValueError, match=r"latents-00002.* holds no tensor latents"):
            function(folder)
    (folder / "latents-00002.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"latents-00002\.safetensors is damaged"):
        latents(folder)
