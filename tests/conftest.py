"""Shared fixtures."""

import pytest
import torch
from exact import PATHS, mixture_2d
from tiny_recipe import TINY


@pytest.fixture(autouse=True)
def _no_progress_file(monkeypatch):
    """No test writes into the progress file of whoever runs it."""
    monkeypatch.setenv("COURSE_PROGRESS", "off")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """File of a tiny conditional recipe."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def mixture(path):
    return mixture_2d(path)
