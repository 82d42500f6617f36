"""Run benchmarks and print their table: `python -m tests.benchmarks [name ...]`, by default all."""

from __future__ import annotations

import importlib
import os
import sys

# Before torch is imported: threads that wait by spinning take the time of whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console
from rich.table import Table

BENCHMARKS = (
    "mixing_overhead",
    "training_step",
    "ragged_training_step",
    "checkpoint_upload",
    "artifact_transfer",
    "compile_and_plan",
    "decode_step",
    "strategies",
    "vllm_mixing",
    "vllm_stock",
    "neighbor_index",
    "full_neighbor_index",
    "grading",
    "bootstrap",
    "evaluation_overhead",
)
LONG = ("grading_fuzz", "comparison_coverage", "early_stopping", "champion_watch")
"""Benchmarks that run only if they are named: one takes hours, the others have no peer."""


def main() -> None:
    """Run the benchmarks whose name starts with one of the arguments."""
    wanted = sys.argv[1:] or BENCHMARKS
    meant = [
        max((name for name in (*BENCHMARKS, *LONG) if word.startswith(name)), key=len, default="") for word in wanted
    ]
    chosen = [name for name in (*BENCHMARKS, *LONG) if name in meant]
    if not chosen:
        sys.exit(f"no benchmark is named {' or '.join(wanted)}: choose from {', '.join((*BENCHMARKS, *LONG))}")
    table = Table(
        "benchmark", "ours", "peer", "unit", "ratio (95 % interval of the median; lowest to highest)", "the peer"
    )
    for name in chosen:
        for result in importlib.import_module(f"tests.benchmarks.{name}").run():
            low, high = result["ratio_interval"]
            lowest, highest = result["ratio_spread"]
            table.add_row(
                result["name"],
                f"{result['ours']:.2f}",
                f"{result['peer']:.2f}",
                result["unit"],
                f"{result['ratio']:.3f} ({low:.3f} to {high:.3f}; {lowest:.3f} to {highest:.3f})",
                result["peer_is"],
            )
    if table.row_count:  # some race nobody, and print tables of their own
        Console().print(table)


if __name__ == "__main__":
    main()
