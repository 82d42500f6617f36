"""Kernel launches and memory traffic of a decode step outside the model: fused kernels against stock vLLM's sampler and torch code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.measure import report

TESTS = Path(__file__).parents[1]
PEERS = {
    "stock": "stock vLLM's sampler (Model Runner V2), log-probability of the token on",
    "torch": "our torch code, which processors run",
}


def run() -> list[dict]:
    """Count; nothing is timed, so one round says it all."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "decode_step_counts.py")],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout.splitlines()[-1])
    details = {"vocabulary": 151_936, "dtype": "bfloat16", "rate": 1.0, "k": 3}
    return [
        report(
            f"decode_step_{what}_{peer}",
            [counts["kernels"][what]],
            [counts[peer][what]],
            unit=unit,
            scale=scale,
            peer_is=PEERS[peer],
            **details,
        )
        for peer in PEERS
        for what, unit, scale in (("launches", "launches a step", 1.0), ("bytes", "MB a row", 1e-6))
    ]
