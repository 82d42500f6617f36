"""Grade the stored samples of an evaluation again, because verdicts of different graders are not comparable.

Nothing is generated. The samples are checked against the counts of the evaluation, and the gold answers against its protocol.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ngrpo.config import EvaluationConfig
from ngrpo.contracts.evaluation import Answers, Evaluation, Statistics
from ngrpo.errors import DataError
from ngrpo.evaluation.protocol import grader_version, problems_digest
from ngrpo.evaluation.results import benchmark_result
from ngrpo.evaluation.stored_evaluation import MODEL, answer_key, grading_of, protocol_of
from ngrpo.evaluation.verdicts import SAMPLES, graded
from ngrpo.grading.grader import Grader


@dataclass(frozen=True)
class GradedAgain:
    """An evaluation with the verdicts of the current graders.

    Attributes:
        evaluation: The evaluation; everything that was not graded again is unchanged.
        samples: How many samples were graded again.
        changed: How many of them got another verdict.
    """

    evaluation: Evaluation
    samples: int
    changed: int


def grade_again(
    evaluation: Evaluation,
    names: Sequence[str],
    samples: Path,
    *,
    answers: Mapping[str, Answers],
    statistics: Statistics | None,
) -> GradedAgain:
    """Grade the samples of the trained model on some benchmarks again.

    Args:
        evaluation: The evaluation that the samples belong to.
        names: The benchmarks.
        samples: Directory with `<benchmark>.parquet` for each.
        answers: Gold answers by benchmark.
        statistics: Settings that turn verdicts into results; None for the defaults.

    Raises:
        DataError: Samples or gold answers are missing, or are not those of the evaluation.
    """
    new = copy.deepcopy(evaluation)
    total = changed = 0
    with Grader() as grader:
        for name in names:
            result = evaluation["models"]["trained"][name]
            gold = _gold(evaluation, name, answers)
            table = _samples(samples / f"{name}.parquet", result["per_problem"], result["n_samples"])
            by_string = "string_match" in result
            now = graded(table, answer_key(gold), grader, by_string=by_string)
            total += now.num_rows
            changed += pc.sum(pc.xor(table["correct"], now["correct"])).as_py()
            settings = EvaluationConfig.model_validate(_settings(statistics, result["n_samples"]))
            seed = 0 if statistics is None else statistics["seed"]
            new["models"]["trained"][name] = benchmark_result(now, settings, seed)
            if "stopped" in result:
                new["models"]["trained"][name]["stopped"] = result["stopped"]
            new["protocols"][MODEL][name]["grader"] = grader_version(grading_of(gold))
    return GradedAgain(new, total, changed)


def _gold(evaluation: Evaluation, name: str, answers: Mapping[str, Answers]) -> Answers:
    gold = answers.get(name)
    protocol = protocol_of(evaluation, MODEL, name)
    if gold is None or protocol is None or problems_digest(gold["answers"]) != protocol.get("problems"):
        raise DataError(f"the gold answers that the samples of {name} were graded with are unknown")
    return gold


def _samples(path: Path, correct: Mapping[str, int], samples: int) -> pa.Table:
    """Read samples, and make sure that they are those of an evaluation.

    Args:
        path: The table.
        correct: How many samples of each problem the evaluation counts as correct.
        samples: How many samples of each problem it has.
    """
    try:
        table = pq.read_table(path, schema=SAMPLES)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path.name} is not a table of samples ({str(error).splitlines()[0]})") from error
    found: dict[str, tuple[int, int]] = {}
    if table["text"].null_count or table["correct"].null_count:
        raise DataError(f"{path.name} has rows without a response or a verdict")
    for problem, verdict in zip(table["problem_id"].to_pylist(), table["correct"].to_pylist(), strict=True):
        count, right = found.get(problem, (0, 0))
        found[problem] = count + 1, right + verdict
    if found != {problem: (samples, right) for problem, right in correct.items()}:
        raise DataError(f"{path.name} does not hold the samples that the evaluation counts")
    return table


def _settings(statistics: Statistics | None, samples: int) -> dict[str, object]:
    if statistics is None:
        return {"samples": samples, "pass_at": (1,)}
    return {
        "samples": samples,
        "pass_at": tuple(k for k in statistics["pass_at"] if k <= samples) or (1,),
        "confidence": statistics["confidence"],
        "bootstrap_draws": statistics["bootstrap_draws"],
    }
