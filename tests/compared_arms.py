"""Arms of made-up runs whose numbers are known, for comparisons."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config import EvaluationConfig
from ngrpo.evaluation.results import benchmark_result
from ngrpo.evaluation.verdicts import SAMPLES
from ngrpo.ledger.spending import Cost
from ngrpo.report.comparison import Arm, ComparedRun

N = 8
PROTOCOL = {"problems": "p", "revision": None, "prompts": "q", "sampling": {"samples": N}, "grader": "g"}
CONFIG = EvaluationConfig(samples=N, pass_at=(1, 4, N), bootstrap_draws=200)


def table(counts: list[int], noise: random.Random) -> pa.Table:
    """Samples of problems, `counts` of N correct."""
    rows = [
        {
            "problem_id": f"p{problem:03d}",
            "sample_id": sample,
            "text": f"<think>first {noise.randrange(9)} + {problem}</think> so {problem if sample < count else noise.randrange(99)}",
            "tokens": 10 + sample,
            "finish_reason": "stop",
            "extracted": str(problem) if sample < count else str(100 + noise.randrange(3)),
            "correct": sample < count,
            "grader_error": None,
            "string_match": None,
        }
        for problem, count in enumerate(counts)
        for sample in range(N)
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def evaluation_of(
    counts: dict[str, list[int]], noise: random.Random, **protocol: object
) -> tuple[dict, dict[str, pa.Table]]:
    tables = {name: table(each, noise) for name, each in counts.items()}
    results = {name: benchmark_result(each, CONFIG, 0) for name, each in tables.items()}
    models = ("base", "warm_start", "trained")
    return {
        "layout": 1,
        "models": {model: results for model in models},
        "protocols": {model: {name: PROTOCOL | protocol for name in counts} for model in models},
    }, tables


def history(noise: random.Random, steps: int = 12) -> list[dict]:
    return [
        {
            "step": step,
            "reward": 0.4 + 0.03 * step + noise.gauss(0, 0.02),
            "frac_reward_zero_std": 0.25,
            "entropy": 0.5 - 0.02 * step,
            "mismatch/unmixed_mean": 0.004,
            "num_tokens": 600.0 * step,
            "step_time": 2.0,
        }
        for step in range(1, steps + 1)
    ]


def run_of(
    directory: Path, name: str, seed: int, counts: dict[str, list[int]], *, trained: bool = True, **protocol: object
) -> ComparedRun:
    """A run with its artifacts on disk; without `trained` it has an evaluation alone."""
    noise = random.Random(f"{name} {seed}")
    evaluation, tables = evaluation_of(counts, noise, **protocol)
    if not trained:
        return ComparedRun(seed, evaluation, None, None)
    training, samples = directory / f"{name}-{seed}-training", directory / f"{name}-{seed}-samples"
    training.mkdir()
    (training / "log_history.json").write_text(json.dumps(history(noise)))
    for benchmark, each in tables.items():
        path = samples / "samples" / "trained" / f"{benchmark}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(each, path)
    took = {
        ("ngrpo_training", f"{name}-{seed}"): Cost(seconds=2700.0, processor_seconds=3600.0, gpu_seconds=5400.0),
        ("sft_warm_start", f"shared-{seed}"): Cost(seconds=900.0),
    }
    return ComparedRun(seed, evaluation, training, samples, took)


def counts_of(skill: float, name: str, seed: int, size: int = 16) -> list[int]:
    """Correct samples of each problem: how hard a problem is does not depend on arm and seed."""
    noise = random.Random(f"{name} {seed}")
    hard = [random.Random(f"problem {problem}").uniform(-0.3, 0.3) for problem in range(size)]
    return [sum(noise.random() < skill + each for _ in range(N)) for each in hard]


def arm_of(
    directory: Path, name: str, skill: float, seeds: int, *, size: int = 16, trained: bool = False, **settings: object
) -> Arm:
    runs = tuple(
        run_of(directory, name, seed, {"sums": counts_of(skill, name, seed, size)}, trained=trained, **settings)
        for seed in range(seeds)
    )
    return Arm(name, runs)
