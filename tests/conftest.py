"""Shared fixtures."""

import pytest
import torch
from exact import PATHS, mixture_2d


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def mixture(path):
    return mixture_2d(path)
