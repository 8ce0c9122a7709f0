"""What every benchmark needs: a clock, a network that costs nothing, a word on the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import torch

PACKAGES = ("torch", "numpy", "scipy", "torchdiffeq", "diffusers", "zuko")


class Identity(torch.nn.Module):
    """A network that costs nothing: what is left is the sampler's own time."""

    def forward(self, x, t, cond=None):
        """Return the input."""
        return x


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of `run`, after one run that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def paired_seconds(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Return the median time of each, and the median of their ratio, ours over theirs.

    They take turns, so that whatever else the machine does slows both.
    """
    pairs = [(median_seconds(ours, 1), median_seconds(theirs, 1)) for _ in range(repeats)]
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)


def machine() -> dict[str, object]:
    """Return what the numbers depend on: processor, threads, versions."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "processor": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
