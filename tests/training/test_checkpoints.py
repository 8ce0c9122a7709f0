import errno
import hashlib
import os

import pytest
import torch

from course_lib.training.atomic import write_atomic
from course_lib.training.checkpoint_io import AtomicCheckpointIO, NoteRecipe
from course_lib.training.checkpoints import (
    averaged_weights,
    checkpoint_path,
    clear,
    is_valid,
    newest,
)


def save(folder, *steps):
    for step in steps:
        AtomicCheckpointIO().save_checkpoint({"step": step}, checkpoint_path(folder, step))


def test_the_last_two_are_kept_each_with_a_hash_that_sha256sum_reads(tmp_path):
    save(tmp_path, 9, 10, 100)
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names == ["step-000000010.ckpt", "step-000000100.ckpt"]
    digest, name = (tmp_path / "step-000000100.ckpt.sha256").read_text().split()
    assert name == "step-000000100.ckpt"
    assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert len(list(tmp_path.iterdir())) == 4
    assert AtomicCheckpointIO().load_checkpoint(newest(tmp_path)) == {"step": 100}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no hash"])
def test_damage_is_found_and_the_previous_one_used(tmp_path, damage):
    save(tmp_path, 1, 2)
    path = checkpoint_path(tmp_path, 2)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.with_name(path.name + ".sha256").unlink()
    assert not is_valid(path)
    with pytest.warns(UserWarning, match=r"step-000000002.*damaged"):
        assert newest(tmp_path) == checkpoint_path(tmp_path, 1)


def test_no_checkpoint_at_all(tmp_path):
    assert newest(tmp_path / "missing") is None
    clear(tmp_path / "missing")
    assert newest(tmp_path) is None


def test_remove_and_clear(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "step-000000003.ckpt.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    AtomicCheckpointIO().remove_checkpoint(checkpoint_path(tmp_path, 1))
    assert newest(tmp_path) == checkpoint_path(tmp_path, 2)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_recipe_and_averaged_weights_are_read_back(tmp_path):
    recipe = {"model": {"class_path": "a.B"}}
    stored = {"state_dict": {"averaged.module.w": torch.ones(2), "model.w": torch.zeros(2)}}
    NoteRecipe(recipe).on_save_checkpoint(None, None, stored)
    path = checkpoint_path(tmp_path, 3)
    AtomicCheckpointIO().save_checkpoint(stored, path)
    weights, found = averaged_weights(path)
    assert found == recipe
    assert list(weights) == ["w"]
    assert torch.equal(weights["w"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"step-000000003\.ckpt is damaged or incomplete"):
        averaged_weights(path)
    save(tmp_path, 4)
    with pytest.raises(ValueError, match="does not say how its model is built"):
        averaged_weights(checkpoint_path(tmp_path, 4))


def test_nothing_but_tensors_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


def test_full_disk_names_the_folder_and_leaves_what_was_there(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(tmp_path / "a", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write a in folder"):
        write_atomic(tmp_path / "file" / "a", b"")
