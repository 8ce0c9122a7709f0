import pytest
import torch
from sklearn.datasets import load_digits

from course_lib.data import digits


def test_all():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    raw = load_digits()
    assert (((images[:, 0] + 1) * 8).numpy() == raw.images).all()
    assert (labels.numpy() == raw.target).all()


def test_splits_share_nothing_and_miss_nothing():
    images, labels = digits("all")
    parts = [digits("train"), digits("test")]
    assert [len(part[1]) for part in parts] == [1500, 297]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_every_class_is_in_each_split():
    assert digits("test")[1].bincount().min() >= 27
    assert digits("train")[1].bincount().min() >= 146


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be one of train, test, all; got 'valid'"):
        digits("valid")
