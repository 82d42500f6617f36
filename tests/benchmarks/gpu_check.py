"""Checks that need a GPU, in less than eight minutes: `make gpu-check`, or `python3 tests/benchmarks/gpu_check.py [part ...]`.

Runs under any Python that has torch 2.11 or later and Triton, without our environment, and compares with vLLM where it can be imported.
Each part (`gpu_parts.py`) runs in a process of its own, so that one that fails leaves the others whole, and writes
`outputs/bench/gpu-<part>.json`; the command fails if a part does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"kernels": 60, "synchronisation": 40, "step": 60, "index": 60, "nucleus": 30, "weights": 80, "engine": 150}
"""What is checked, and the seconds that it may take: eight minutes in all."""


def why_not() -> str | None:
    """Return why nothing can be checked here; None if everything is there."""
    for package, name in (("torch", "torch"), ("triton", "Triton")):
        if importlib.util.find_spec(package) is None:
            return (
                f"{sys.executable} has no {name}: run it with PYTHON=, a Python that has torch 2.11 or later and Triton"
            )
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11: install a later one"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device: run it where there is an NVIDIA GPU and a CUDA build of torch"
    return None


def main(words: list[str]) -> int:
    """Run parts, by default all, and say what came out.

    Returns:
        The exit status.
    """
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        print(f"gpu-check: there is no part {' or '.join(unknown)}: choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    reason = why_not()
    if reason is not None:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 1
    results = {name: run_apart(name) for name in words or PARTS}
    failed = [name for name, result in results.items() if not result["ok"]]
    print(
        f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'all is well'}; outputs/bench/gpu-*.json has the figures"
    )
    return 1 if failed else 0


def run_apart(name: str) -> dict[str, Any]:
    """Run a part in a process of its own, print and return its result; one that ends without any leaves its last line as its error."""
    path = ROOT / "outputs" / "bench" / f"gpu-{name}.json"
    path.unlink(missing_ok=True)
    places = [str(ROOT), str(ROOT / "components"), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.gpu_parts", name],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=PARTS[name],
            check=False,
        )
        lines = (process.stderr.strip() or process.stdout.strip() or "it said nothing").splitlines()
        ended = f"exit status {process.returncode}: {lines[-1]}"
    except subprocess.TimeoutExpired:
        ended = f"it took more than {PARTS[name]} s"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"name": f"gpu-{name}", "ok": False, "error": ended}, indent=2) + "\n", encoding="utf-8"
        )
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    print(f"{name}: {json.dumps({key: value for key, value in result.items() if key != 'name'})}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
