"""One benchmark as the data stage wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config.grading import BOXED, Gold, GradingConfig
from ngrpo.errors import DataError

_COLUMNS = ("id", "prompt", "answer")


@dataclass(frozen=True)
class Benchmark:
    """The problems of a benchmark.

    Attributes:
        name: Name of the benchmark.
        ids: Unique name of each problem.
        prompts: The conversation that asks each problem.
        answers: The gold answer of each problem, or the list of accepted answers.
        grading: How responses are graded.
    """

    name: str
    ids: list[str]
    prompts: list[list[dict[str, str]]]
    answers: Sequence[Gold]
    grading: GradingConfig = BOXED


@dataclass(frozen=True)
class AnswerKey:
    """What grading needs of a benchmark: the ids, answers and grading of a `Benchmark`."""

    ids: list[str]
    answers: Sequence[Gold]
    grading: GradingConfig = BOXED


def gold_text(gold: Gold, grading: GradingConfig) -> str:
    """Return a gold answer, or several accepted ones, as readable text."""
    return gold if isinstance(gold, str) else (" and " if grading.accepted == "all" else " or ").join(gold)


def read_benchmarks(directory: Path, gradings: Mapping[str, GradingConfig]) -> list[Benchmark]:
    """Read every `<name>.parquet` of a directory, in the order of the names.

    Args:
        directory: The directory.
        gradings: How responses are graded, by name of the benchmark; by default as `GradingConfig` says.

    Raises:
        DataError: There is no such file, or one is damaged, empty, or has missing columns, repeated ids or problems without an answer.
    """
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise DataError(f"benchmarks in {directory}: no *.parquet file; name at least one in data.benchmarks")
    return [read_benchmark(path, gradings.get(path.stem)) for path in files]


def read_benchmark(path: Path, grading: GradingConfig | None = None) -> Benchmark:
    """Read `<name>.parquet`.

    Raises:
        DataError: It is damaged, empty, or has missing columns, repeated ids or problems without an answer.
    """
    name = path.stem
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"benchmark {name!r}: {path} is not a readable Parquet file ({error}); prepare the data again"
        ) from error
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(
            f"benchmark {name!r}: column {', '.join(missing)} is missing; its columns must be {', '.join(_COLUMNS)}"
        )
    if table.num_rows == 0:
        raise DataError(f"benchmark {name!r}: it has no problems; correct its source in data.benchmarks")
    ids, prompts, answers = (table[column].to_pylist() for column in _COLUMNS)
    identifier, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"benchmark {name!r}: id {identifier!r} occurs {count} times; ids must be unique")
    for identifier, prompt, answer in zip(ids, prompts, answers, strict=True):
        if not identifier or not prompt or not answer:
            raise DataError(
                f"benchmark {name!r}: problem {identifier!r} has no id, prompt or answer; correct or drop it in its source"
            )
    return Benchmark(name, ids, prompts, answers, grading or GradingConfig())
