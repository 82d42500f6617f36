"""Problems of a Hugging Face data set: from the hub, from a local copy, or from a copy in object storage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.config import HubSource
from ngrpo.config.grading import Gold
from ngrpo.data.copies import is_copy, is_read, last_part, planned
from ngrpo.data.golds import form_in_words, form_of, gold_column
from ngrpo.data.locations import download, explained, is_bucket, local_directory
from ngrpo.data.multiple_choice import with_options
from ngrpo.data.problem import Problem
from ngrpo.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def load(source: HubSource) -> list[Problem]:
    """Return the problems of a data set.

    A problem or an answer that is missing in single rows comes as an empty text: the caller decides what that means.

    Raises:
        DataError: The data set cannot be reached, is empty, lacks a column, has a column without any value, or is a copy with other
            content than the run was planned with.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    with tempfile.TemporaryDirectory() as scratch, planned(source):
        return _problems(source, _read(source, Path(scratch)))


def _read(source: HubSource, scratch: Path) -> Dataset:
    """Load the wanted split. A copy has the layout of the repository on the hub, so `datasets` reads it in the same way."""
    if is_bucket(source.id):
        download(source.id, scratch / "copy", is_read(source))
        return _load(source, str(scratch / "copy"), cache_dir=str(scratch / "cache"))
    if is_copy(source):
        return _load(source, str(local_directory(source.id)), cache_dir=str(scratch / "cache"))
    return _load(source, source.id, revision=source.revision)


def _load(source: HubSource, path: str, **options: Any) -> Dataset:
    from datasets import load_dataset, load_dataset_builder
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    pinned = f"revision {source.revision}, " if "revision" in options else ""
    where = f"data set {source.id!r} ({pinned}subset {source.subset}, split {source.split!r})"
    if "revision" in options:
        cure = "check id, revision, subset and split, or set id to a local copy or an s3:// copy if the hub is out of reach"
    else:
        cure = (
            "the copy must have the layout of the hub's repository: check subset, split and files, whether a file of it is empty or "
            "damaged, and that there is no script (ngrpo runs none)"
        )
    with explained(f"{where} cannot be loaded", cure):
        if "revision" not in options:
            _require_inside(
                path, where, load_dataset_builder(path, name=source.subset, **options).config.data_files or {}
            )
        return load_dataset(path, name=source.subset, split=source.split, **options)


def _require_inside(path: str, where: str, files: Mapping[str, Sequence[str]]) -> None:
    """Refuse a copy whose card (README.md) names files elsewhere: what this machine holds is nothing to train on."""
    inside = os.path.join(os.path.abspath(path), "")
    # Links are not followed: the hub's own cache consists of them.
    outside = [name for names in files.values() for name in names if not os.path.abspath(name).startswith(inside)]
    if outside:
        raise DataError(f"{where}: its card names the file {outside[0]!r}, which is not part of it; correct README.md")


def _problems(source: HubSource, rows: Dataset) -> list[Problem]:
    columns = {"problem_column": source.problem_column, "answer_column": source.answer_column}
    if source.solution_column is not None:
        columns["solution_column"] = source.solution_column
    for setting, column in [
        *columns.items(),
        *(("wrong_answer_columns", name) for name in source.wrong_answer_columns),
    ]:
        if column not in rows.column_names:
            raise DataError(
                f"data set {source.id!r}: {setting}={column!r} is not one of its columns: {', '.join(rows.column_names)}"
            )
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise DataError(f"data set {source.id!r}: split={source.split!r} is empty; name a split with rows")
    problems = _texts(source, rows, source.problem_column)
    answers = _golds(source, rows)
    for setting, values, what in (("problem_column", problems, "text"), ("answer_column", answers, "answer")):
        if not any(values):
            boxed = form_in_words(form_of(source)) if what == "answer" else ""
            raise DataError(
                f"data set {source.id!r}: {setting}={columns[setting]!r} holds no {what}{boxed} in any of its {len(rows)} "
                f"rows; its columns are {', '.join(rows.column_names)}"
            )
    solutions = [""] * len(rows) if source.solution_column is None else _texts(source, rows, source.solution_column)
    ids = [f"{last_part(source)}-{index}" for index in range(len(rows))]
    if source.wrong_answer_columns:
        right = _texts(source, rows, source.answer_column)
        wrong = zip(*(_texts(source, rows, column) for column in source.wrong_answer_columns), strict=True)
        questions = zip(ids, problems, right, wrong, strict=True)
        shown = [with_options(*question) for question in questions]
        problems, answers = [question for question, _ in shown], [letter for _, letter in shown]
    return [
        Problem(identifier, problem, answer, solution or None)
        for identifier, problem, answer, solution in zip(ids, problems, answers, solutions, strict=True)
    ]


def _texts(source: HubSource, rows: Dataset, column: str) -> list[str]:
    """Return the values of a column as texts, empty where one is missing."""
    what = f"data set {source.id!r}: column {column!r} cannot be read"
    with explained(what, "a file of it is damaged: copy it again"):
        values = list(rows[column])
    return [_text(value, f"{what}: row {number}") for number, value in enumerate(values)]


def _golds(source: HubSource, rows: Dataset) -> list[Gold]:
    what = f"data set {source.id!r}: column {source.answer_column!r}"
    with explained(f"{what} cannot be read", "a file of it is damaged: copy it again"):
        cells = list(rows[source.answer_column])
    return gold_column(source, cells, lambda row: f"{what}: row {row}", _text)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str | int | float | Decimal | None):
        raise DataError(
            f"{place} holds a {type(value).__name__}, no text and no number; name another column, or correct the data set"
        )
    return "" if value is None else str(value).strip()
