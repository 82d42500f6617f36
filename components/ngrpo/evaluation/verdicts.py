"""Verdicts on samples: the columns of their table, and grading."""

from __future__ import annotations

import pyarrow as pa

from ngrpo.config.grading import Gold
from ngrpo.evaluation.benchmark import AnswerKey, Benchmark
from ngrpo.grading.grader import Grader
from ngrpo.grading.string_match import string_match

SAMPLES = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample_id", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
        ("grader_error", pa.string()),
        ("string_match", pa.bool_()),
    ]
)
"""Columns of a table of samples; `extracted` is null if the response has no answer, `grader_error` if it could be graded, and
`string_match` if the benchmark does not use string matching."""
GENERATED = pa.schema([SAMPLES.field(name) for name in ("problem_id", "sample_id", "text", "tokens", "finish_reason")])
"""The columns that are filled when samples are generated."""


def graded(samples: pa.Table, benchmark: Benchmark | AnswerKey, grader: Grader, *, by_string: bool = False) -> pa.Table:
    """Return samples with their verdicts, a table of `SAMPLES`; any verdicts they already have are ignored.

    Args:
        samples: Table with the columns of `SAMPLES` up to `finish_reason`, or all of them.
        benchmark: The benchmark, with the gold answers.
        grader: Grades the responses, as the benchmark says.
        by_string: Fill the column `string_match` too.
    """
    gold = dict(zip(benchmark.ids, benchmark.answers, strict=True))
    golds = [gold[problem] for problem in samples["problem_id"].to_pylist()]
    items = list(zip(samples["text"].to_pylist(), golds, strict=True))
    grades = grader.grade(items, benchmark.grading)
    verdicts = {
        "extracted": [grade.extracted for grade in grades],
        "correct": [grade.correct for grade in grades],
        "grader_error": [grade.error for grade in grades],
        "string_match": [_string_match(*item) if by_string else None for item in items],
    }
    columns = {name: samples[name] for name in GENERATED.names} | verdicts
    return pa.table(columns, schema=SAMPLES)


def _string_match(text: str, gold: Gold) -> bool:
    return any(string_match(text, each) for each in ([gold] if isinstance(gold, str) else gold))
