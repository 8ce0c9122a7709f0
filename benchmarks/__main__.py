"""Measure: `python -m benchmarks [overhead] [solvers]`; without a name, `overhead`.

Prints tables and writes `benchmarks/results.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import overhead, solvers
from benchmarks.measuring import machine

BENCHMARKS = {"overhead": overhead, "solvers": solvers}
RESULTS = Path(__file__).parent / "results.json"


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
    RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    for name, values in results.items():
        print(BENCHMARKS[name].table(values))


if __name__ == "__main__":
    main()
