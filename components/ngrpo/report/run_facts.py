"""What a run stores about its rollouts, its samples and its time, for a comparison. What it does not have is left out, never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from ngrpo.contracts.history import Entry, read_history
from ngrpo.evaluation.sample_diversity import answer_entropy, distinct_prefixes, self_bleu
from ngrpo.report.compared_runs import ComparedRun

_CURE = "run the preset again: its results are in the store"
_PREFIX = 64
_WORDS = 200
_BLEU_PROBLEMS, _BLEU_SAMPLES = 100, 16
"""Numbers of problems, evenly spaced, and of responses to each that Self-BLEU is computed on: its time grows with both."""


@dataclass(frozen=True)
class FactOf:
    """How a fact is called and written: title, unit and format of a value."""

    title: str
    form: str = ".1f"
    scale: float = 1.0


OF_SAMPLES: Mapping[str, FactOf] = {
    "distinct_answers": FactOf("distinct answers, % of samples", scale=100),
    "answer_entropy": FactOf("answer entropy, nats", ".3f"),
    "distinct_prefixes": FactOf(f"distinct beginnings ({_PREFIX} characters), % of samples", scale=100),
    "self_bleu": FactOf(f"self-BLEU (first {_WORDS} words)", ".3f"),
    "mean_tokens": FactOf("response, tokens"),
    "truncated_rate": FactOf("cut off at the token limit, %", scale=100),
    "ungraded_rate": FactOf("without an answer, %", scale=100),
}
"""Facts about the samples of a benchmark."""

OF_TRAINING: Mapping[str, FactOf] = {
    "both_outcomes": FactOf("groups whose rewards differ, %", scale=100),
    "group_answers": FactOf("distinct answers in a group, %", scale=100),
    "policy_entropy": FactOf("policy entropy, nats", ".3f"),
    "logp_unmixed": FactOf("|Δ log p| engine and trainer, unmixed", ".2g"),
    "logp_mixed": FactOf("|Δ log p| engine and trainer, mixed", ".2g"),
    "tokens_per_second": FactOf("training, tokens/s (prompt and response)", ",.0f"),
    "minutes": FactOf("training, minutes"),
    "processor_hours": FactOf("training, processor-hours", ".3g"),
    "gpu_hours": FactOf("training, GPU-hours", ".3g"),
    "kwh": FactOf("training, kWh of its GPUs", ".3g"),
    "run_minutes": FactOf("whole run, minutes"),
}
"""Facts about training: means over its steps, what it took, and what all results of the run took, those that it shares with others too."""

CURVES: Mapping[str, FactOf] = {
    "reward": FactOf("Reward, mean", ".3f"),
    "eval_mean": FactOf("Validation, correct answers, %", scale=100),
    "both_outcomes": FactOf("Groups whose rewards differ, %", scale=100),
    "entropy": FactOf("Policy entropy, nats", ".3f"),
    "kl": FactOf("KL divergence from the reference", ".4f"),
    "completions/mean_length": FactOf("Response length, tokens"),
    "diversity/distinct_answers": FactOf("Distinct answers in a group, %", scale=100),
}
"""Learning curves, by the name of the metric in the log; `both_outcomes` is one less `frac_reward_zero_std`."""

_LOGGED = {
    "group_answers": "diversity/distinct_answers",
    "policy_entropy": "entropy",
    "logp_unmixed": "mismatch/unmixed_mean",
    "logp_mixed": "mismatch/mixed_mean",
}


def history_of(run: ComparedRun) -> list[Entry]:
    """Return what the training of a run logged, oldest first; nothing where there is no log.

    Raises:
        StoreError: The log is damaged.
    """
    if run.training is None or not (run.training / "log_history.json").exists():
        return []
    return [_with_outcomes(entry) for entry in read_history(run.training, _CURE)]


def logged(history: Sequence[Entry], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a metric was logged as a finite number, each once and ascending, and its values."""
    values: dict[float, float] = {}
    for entry in history:
        step, value = entry["step"], entry.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            values[step] = value
    return list(dict(sorted(values.items()))), [values[step] for step in sorted(values)]


def training_facts(run: ComparedRun, history: Sequence[Entry]) -> dict[str, float]:
    """Return the facts of `OF_TRAINING` that a run has.

    Args:
        run: The run.
        history: Its `history_of`.
    """
    facts = {}
    for fact, name in {"both_outcomes": "both_outcomes", **_LOGGED}.items():
        values = logged(history, name)[1]
        if values:
            facts[fact] = fmean(values)
    tokens, seconds = logged(history, "num_tokens")[1], logged(history, "step_time")[1]
    # Tokens are counted from the start of the run, or of the process that resumed it.
    seen = sum(
        after - before if after >= before else after for before, after in zip([0.0, *tokens], tokens, strict=False)
    )
    if seen and sum(seconds):
        facts["tokens_per_second"] = seen / sum(seconds)
    return facts | _costs(run)


def _costs(run: ComparedRun) -> dict[str, float]:
    facts, training = {}, run.training_cost
    if training is not None:
        facts = {"minutes": training.seconds / 60, "processor_hours": training.processor_hours}
        if training.gpu_seconds:
            facts["gpu_hours"] = training.gpu_hours
        if training.kilowatt_hours is not None:
            facts["kwh"] = training.kilowatt_hours
    return facts if run.cost is None else facts | {"run_minutes": run.cost.seconds / 60}


def sample_facts(run: ComparedRun, benchmark: str) -> dict[str, float]:
    """Return the facts of `OF_SAMPLES` that a run has of a benchmark, means over problems."""
    result: Mapping[str, Any] = run.evaluation["models"]["trained"][benchmark]
    facts = {name: float(result[name]) for name in OF_SAMPLES if name in result}
    path = None if run.samples is None else _samples(run.samples, benchmark)
    if path is not None:
        facts |= _of_table(path)
    return facts


def _samples(directory: Path, benchmark: str) -> Path | None:
    path = directory / "samples" / "trained" / f"{benchmark}.parquet"
    return path if path.exists() else None


def _of_table(path: Path) -> dict[str, float]:
    table = pq.read_table(path, columns=["problem_id", "text", "extracted", "correct"])
    problems = table.group_by("problem_id", use_threads=False).aggregate(
        [("text", "list"), ("extracted", "list"), ("correct", "list")]
    )
    texts = problems["text_list"].to_pylist()
    verdicts = zip(problems["extracted_list"].to_pylist(), problems["correct_list"].to_pylist(), strict=True)
    by_problem: dict[str, Sequence[float | None]] = {
        "answer_entropy": [answer_entropy(answers, correct) for answers, correct in verdicts],
        "distinct_prefixes": [distinct_prefixes(each, _PREFIX) for each in texts],
        "self_bleu": self_bleu([each[:_BLEU_SAMPLES] for each in texts[:: -(-len(texts) // _BLEU_PROBLEMS)]], _WORDS),
    }
    known = {name: [value for value in values if value is not None] for name, values in by_problem.items()}
    return {name: fmean(values) for name, values in known.items() if values}


def _with_outcomes(entry: Entry) -> Entry:
    share = entry.get("frac_reward_zero_std")
    return entry | {"both_outcomes": 1.0 - share} if isinstance(share, int | float) else entry
