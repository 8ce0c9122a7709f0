"""Measure: `python -m benchmarks [NAME ...]`; without a name, `overhead`.

Prints tables and writes `benchmarks/results.json`; what the book shows goes to `book/_data` too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import (
    composition,
    conditioning,
    distillation,
    flows,
    flows_mnist,
    guidance,
    overhead,
    reflow,
    score_flows,
    solvers,
    transport,
)
from benchmarks.measuring import machine

BENCHMARKS = {
    "overhead": overhead,
    "solvers": solvers,
    "guidance": guidance,
    "conditioning": conditioning,
    "flows": flows,
    "flows_mnist": flows_mnist,
    "score_flows": score_flows,
    "transport": transport,
    "reflow": reflow,
    "distillation": distillation,
    "composition": composition,
}
SHOWN = (
    "guidance",
    "conditioning",
    "flows",
    "flows_mnist",
    "score_flows",
    "reflow",
    "distillation",
    "composition",
)
ROOT = Path(__file__).parent.parent


def write(path: Path, values: object) -> None:
    """Write JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", default=["overhead"], metavar="name", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    results = {name: BENCHMARKS[name].measure(options.quick) for name in options.names}
    write(ROOT / "benchmarks" / "results.json", {"machine": machine(), "results": results})
    for name, values in results.items():
        print(BENCHMARKS[name].table(values))
        if name in SHOWN and not options.quick:
            file = getattr(BENCHMARKS[name], "FILE", name)
            write(ROOT / "book" / "_data" / f"{file}.json", {**values, "machine": machine()})


if __name__ == "__main__":
    main()
