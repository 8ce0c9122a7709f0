"""What `course_lib` adds to the cost of torch: the time to import it, and of a solver's step."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.measuring import Identity, median_seconds
from course_lib import Linear, NetDenoiser
from course_lib.samplers import SOLVERS


def import_seconds(module: str, repeats: int) -> float:
    """Return the median time that a fresh interpreter takes to start and import `module`."""
    command = [sys.executable, "-c", f"import {module}"]
    return median_seconds(lambda: subprocess.run(command, check=True), repeats)


def sampler_microseconds(name: str, steps: int, repeats: int) -> float:
    """Return the time of one step around the identity, for a batch of 64 images of 28x28."""
    denoiser, solver = NetDenoiser(Identity(), Linear(), "velocity"), SOLVERS[name]
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.99, 0.01, steps + 1)
    run = torch.no_grad()(lambda: solver(denoiser, x, times))
    return 1e6 * median_seconds(run, repeats) / steps


def measure(quick: bool) -> dict[str, float]:
    """Return all measurements, by name with unit."""
    repeats = 2 if quick else 5
    results = {f"import {m} [s]": import_seconds(m, repeats) for m in ("torch", "course_lib")}
    for name in SOLVERS:
        if name != "dopri5":  # how many steps it takes is its own choice
            results[f"{name} [us/step]"] = sampler_microseconds(name, 50, repeats)
    return results


def table(results: dict[str, float]) -> str:
    """Return one line for each measurement."""
    return "\n".join(f"{name:<36}{value:>10.3g}" for name, value in results.items())
