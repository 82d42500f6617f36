"""Candidates of promotion whose evaluations were made of real samples, in a real artifact store."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config import EvaluationConfig
from ngrpo.evaluation.protocol import grader_version, problems_digest
from ngrpo.evaluation.results import benchmark_result
from ngrpo.evaluation.stored_evaluation import statistics_of
from ngrpo.evaluation.verdicts import SAMPLES
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.digest import model_digest
from promoting import MIDDLE, candidate

GOLD = {f"p{number}": str(number) for number in range(20)}
SETTINGS = EvaluationConfig(samples=4, pass_at=(1, 4), bootstrap_draws=200)
OLD = "older graders"


def table(plain: int, spelled: int, grader: str) -> pa.Table:
    """Four samples of each problem: some spell the gold answer, some write `7.0` for 7, which only the present graders accept."""
    rows = []
    for problem, gold in GOLD.items():
        for sample in range(4):
            answer = gold if sample < plain else f"{gold}.0" if sample < plain + spelled else "-1"
            correct = answer == gold or (grader != OLD and answer == f"{gold}.0")
            rows.append(
                {
                    "problem_id": problem,
                    "sample_id": sample,
                    "text": rf"\boxed{{{answer}}}",
                    "tokens": 3,
                    "finish_reason": "stop",
                    "extracted": answer,
                    "correct": correct,
                    "grader_error": None,
                    "string_match": None,
                }
            )
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def measured(
    directory: Path,
    store: ArtifactStore,
    name: str,
    plain: int,
    spelled: int = 0,
    *,
    grader: str | None = None,
    answers: bool = True,
) -> dict[str, Path]:
    """Publish the evaluation of a candidate; return the inputs of the stage `model_promotion`."""
    grader = grader or grader_version()
    inputs = candidate(directory / "inputs", name, MIDDLE)
    samples = table(plain, spelled, grader)
    start = benchmark_result(table(0, 0, grader), SETTINGS, 0)
    protocol = {"problems": problems_digest(GOLD), "revision": None, "prompts": "p", "sampling": {}, "grader": grader}
    evaluation = {
        "models": {
            "warm_start": {"arithmetic": start},
            "trained": {"arithmetic": benchmark_result(samples, SETTINGS, 0)},
        },
        "protocols": {model: {"arithmetic": protocol} for model in ("warm_start", "trained")},
        "weights": {"trained": model_digest(inputs["trained"] / "model")},
        **({"answers": {"arithmetic": {"answers": GOLD, "by_letter": False}}} if answers else {}),
        "statistics": statistics_of(SETTINGS, 0),
    }
    (inputs["evaluation"] / "evaluation.json").write_text(json.dumps(evaluation))
    payload = directory / f"payload-{inputs['evaluation'].parent.name}"
    (payload / "samples" / "trained").mkdir(parents=True)
    pq.write_table(samples, payload / "samples" / "trained" / "arithmetic.parquet")
    key = json.loads((inputs["evaluation"] / "manifest.json").read_text())["key"]
    store.publish("benchmark_evaluation", key, payload, config_digest="c", code_version="v", inputs={})
    return inputs
