"""Shared fixtures."""

import pytest
import torch
from exact import PATHS, mixture_2d


@pytest.fixture(autouse=True)
def _no_progress_file(monkeypatch):
    """No test writes into the progress file of whoever runs it."""
    monkeypatch.setenv("COURSE_PROGRESS", "off")


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def mixture(path):
    return mixture_2d(path)
