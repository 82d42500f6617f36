"""One benchmark as the data stage wrote it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.errors import DataError

BY_LETTER = {b"answers": b"letter"}
"""Metadata of a table whose answers are letters of options."""

_COLUMNS = ("id", "prompt", "answer")


@dataclass(frozen=True)
class Benchmark:
    """Problems to be measured on.

    Attributes:
        name: Name of the benchmark.
        ids: Unique name of each problem.
        prompts: Of each problem the conversation that asks it.
        answers: Of each problem the gold answer.
        by_letter: Whether answers are letters of options, to be given as `Answer: X`.
    """

    name: str
    ids: list[str]
    prompts: list[list[dict[str, str]]]
    answers: list[str]
    by_letter: bool = False


@dataclass(frozen=True)
class AnswerKey:
    """What responses to a benchmark are graded by: the ids, answers and kind of answer of a `Benchmark`."""

    ids: list[str]
    answers: list[str]
    by_letter: bool = False


def read_benchmarks(directory: Path) -> list[Benchmark]:
    """Read every `<name>.parquet` of a directory, in the order of the names.

    Raises:
        DataError: There is none, or one is damaged, empty, or has missing columns, repeated ids or problems without an answer.
    """
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise DataError(f"benchmarks in {directory}: no *.parquet file; name at least one in data.benchmarks")
    return [read_benchmark(path) for path in files]


def read_benchmark(path: Path) -> Benchmark:
    """Read `<name>.parquet`.

    Raises:
        DataError: It is damaged, empty, or has missing columns, repeated ids or problems without an answer.
    """
    name = path.stem
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"benchmark {name!r}: {path} is no readable Parquet file ({error}); prepare the data again"
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
    return Benchmark(name, ids, prompts, answers, BY_LETTER.items() <= (table.schema.metadata or {}).items())
