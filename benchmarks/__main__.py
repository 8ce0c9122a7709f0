"""Measure what `course_lib` adds to the cost of torch: `python -m benchmarks [--steps N]`.

Two numbers matter to someone who uses the package: how long its import takes, and how much time a
sampler spends outside of the network. Prints a table and writes `benchmarks/results.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from course_lib import Linear, NetDenoiser, samplers

SOLVERS = ("euler", "heun", "ddim", "ancestral", "dpm_solver_pp_2m")
RESULTS = Path(__file__).parent / "results.json"


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


def import_seconds(module: str, repeats: int) -> float:
    """Return the median time that a fresh interpreter takes to start and import `module`."""
    command = [sys.executable, "-c", f"import {module}"]
    return median_seconds(lambda: subprocess.run(command, check=True), repeats)


def sampler_microseconds(name: str, steps: int, repeats: int) -> float:
    """Return the time of one step around the identity, for a batch of 64 images of 28x28."""
    denoiser, solver = NetDenoiser(Identity(), Linear(), "velocity"), getattr(samplers, name)
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.99, 0.01, steps + 1)
    run = torch.no_grad()(lambda: solver(denoiser, x, times))
    return 1e6 * median_seconds(run, repeats) / steps


def measure(steps: int, repeats: int) -> dict[str, float]:
    """Return all measurements, by name with unit."""
    results = {f"import {m} [s]": import_seconds(m, repeats) for m in ("torch", "course_lib")}
    for name in SOLVERS:
        results[f"{name} [us/step]"] = sampler_microseconds(name, steps, repeats)
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="steps of each solver")
    parser.add_argument("--repeats", type=int, default=5, help="runs; the median counts")
    options = parser.parse_args()
    results = measure(options.steps, options.repeats)
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    machine["threads"] = torch.get_num_threads()
    RESULTS.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    for name, value in results.items():
        print(f"{name:<32}{value:>10.3g}")


if __name__ == "__main__":
    main()
