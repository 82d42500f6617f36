"""Problems of the procedural generators of the `reasoning-gym` library."""

from __future__ import annotations

import dataclasses
from typing import Any

from ngrpo.config import ReasoningGymSource
from ngrpo.data.problem import Problem, box
from ngrpo.errors import DataError

_STREAM = 2**20
"""Distance between the seeds of two sources. A generator seeds its i-th problem with seed + i, so sources with adjacent seeds would share
problems."""
_WORKED_SOLUTION = "answer_cot"
"""Metadata field with the worked solution, in generators that provide one, such as `gsm_symbolic`."""


def load(source: ReasoningGymSource) -> list[Problem]:
    """Return `source.size` problems of a generator, with worked solutions if the generator provides them.

    Raises:
        DataError: The library is not installed, or rejects the generator, an option or its value.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DataError(
            f"source {source.generator!r} needs a package that is missing: pip install reasoning-gym==0.1.25"
        ) from error
    if source.generator not in DATASETS:
        raise DataError(f"generator={source.generator!r} is not one of reasoning-gym's: {', '.join(sorted(DATASETS))}")
    known = {field.name for field in dataclasses.fields(DATASETS[source.generator][1])} - {"size", "seed"}
    unknown = set(source.options) - known
    if unknown:
        raise DataError(
            f"options of {source.generator!r}: {', '.join(sorted(unknown))} unknown; it has {', '.join(sorted(known))}"
        )
    try:
        dataset = create_dataset(source.generator, size=source.size, seed=source.seed * _STREAM, **source.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"options={source.options} of {source.generator!r} are impossible: {error}") from error
    return [_problem(source, index, dataset[index]) for index in range(source.size)]


def _problem(source: ReasoningGymSource, index: int, entry: dict[str, Any]) -> Problem:
    answer = str(entry["answer"])
    work = entry["metadata"].get(_WORKED_SOLUTION)
    if work is not None:
        # The last line repeats the answer after "####"; write it in \boxed{} instead.
        reasoning = work.rstrip().rpartition("####")[0] or work
        work = f"{reasoning.rstrip()}\n{box(answer)}"
    return Problem(f"{source.generator}-{source.seed}-{index}", entry["question"], answer, work)
