"""The quickstart with several seeds: ``python -m benchmarks.quickstart [--seeds 0 1 2] [--read]``.

``--read`` takes the results of runs that are already under ``output/quickstart_seed<N>``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.common import write
from vlm.cli.quickstart import run_quickstart


def main() -> None:
    """Run (or read) every seed and write ``benchmarks/results/quickstart_seed<N>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--read", action="store_true", help="do not run, read what is there")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        output = Path("output") / f"quickstart_seed{seed}"
        results = json.loads((output / "results.json").read_text()) if arguments.read else run_quickstart(output, seed)
        print("written:", write(f"quickstart_seed{seed}", results))


if __name__ == "__main__":
    main()
