"""A million hostile answers, none of which may run code, open a file or start a process; it resumes where it was stopped."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import OUTPUT

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzzed_answers import faults, pair
from ngrpo.grading.grader import Grader

ANSWERS, BATCH = 1_000_000, 5_000


def run() -> list[dict[str, Any]]:
    """Grade them in batches, and stop at the first that does what it must not."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    record = OUTPUT / "grading_fuzz.json"
    done = json.loads(record.read_text(encoding="utf-8"))["answers"] if record.exists() else 0
    if done >= ANSWERS:
        done = 0
    with tempfile.TemporaryDirectory() as folder, Grader(workers=2, timeout_seconds=1.0) as grader:
        canary = Path(folder) / "canary"
        while done < ANSWERS:
            started = time.perf_counter()
            pairs = [pair(number, canary) for number in range(done, done + BATCH)]
            grades = grader.grade([(rf"\boxed{{{answer}}}", gold) for gold, answer in pairs])
            problems = faults(pairs, grades)
            if canary.exists() or problems:
                sys.exit("\n".join([f"canary: {canary.exists()}", *problems]))
            done += BATCH
            # The numbers of the answers are their seeds, so the count is all that must be known to go on.
            record.write_text(json.dumps({"name": "grading_fuzz", "answers": done}) + "\n", encoding="utf-8")
            decided = sum(grade.error is None for grade in grades) / BATCH
            speed = BATCH / (time.perf_counter() - started)
            print(f"{done:,} answers, nothing ran; {speed:.0f} answers/s, {decided:.0%} with a verdict", flush=True)
    return []
