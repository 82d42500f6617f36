"""Problems of a Hugging Face data set: from the hub, from a local copy, or from a copy in object storage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.config import HubSource
from ngrpo.data.cells import cell_at, column_names
from ngrpo.data.columns import Table, problems_of
from ngrpo.data.copies import is_copy, is_read, last_part, planned
from ngrpo.data.locations import download, explained, is_bucket, local_directory
from ngrpo.data.problem import Problem
from ngrpo.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def load(source: HubSource) -> list[Problem]:
    """Return the problems of a data set.

    A missing problem or answer becomes an empty text; the caller decides how to treat it.

    Raises:
        DataError: The data set cannot be reached, is empty, lacks a column, has a column without values, or is a copy that changed
            after the run was planned.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    with tempfile.TemporaryDirectory() as scratch, planned(source):
        return problems_of(source, _table(source, _read(source, Path(scratch))))


def first(source: HubSource, count: int) -> list[Problem]:
    """Return the first `count` problems of a data set, reading no more rows than needed; see `load`.

    The content of a copy is not checked against the plan.
    """
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as scratch:
        rows = _read(source, Path(scratch), streaming=True)
        with explained(
            f"data set {source.id!r}: its first rows cannot be read", "one of its files is damaged: copy it again"
        ):
            head = Dataset.from_list(list(rows.take(count)))
    return problems_of(source, _table(source, head))


def _read(source: HubSource, scratch: Path, *, streaming: bool = False) -> Any:
    """Load the configured split. A copy has the layout of the hub repository, so `datasets` reads it in the same way."""
    if is_bucket(source.id):
        download(source.id, scratch / "copy", is_read(source))
        return _load(source, str(scratch / "copy"), streaming, cache_dir=str(scratch / "cache"))
    if is_copy(source):
        return _load(source, str(local_directory(source.id, source.named)), streaming, cache_dir=str(scratch / "cache"))
    return _load(source, source.id, streaming, revision=source.revision)


def _load(source: HubSource, path: str, streaming: bool, **options: Any) -> Any:
    from datasets import load_dataset, load_dataset_builder
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    pinned = f"revision {source.revision}, " if "revision" in options else ""
    where = f"data set {source.id!r} ({pinned}subset {source.subset}, split {source.split!r})"
    if "revision" in options:
        cure = "check id, revision, subset and split, or set id to a local copy or an s3:// copy if the hub is out of reach"
    else:
        cure = (
            "the copy must have the layout of the hub's repository: check subset, split and files, whether one of its files is empty or "
            "damaged, and that there is no loading script (ngrpo never runs one)"
        )
    with explained(f"{where} cannot be loaded", cure):
        if "revision" not in options:
            _require_inside(
                path, where, load_dataset_builder(path, name=source.subset, **options).config.data_files or {}
            )
        return load_dataset(path, name=source.subset, split=source.split, streaming=streaming, **options)


def _require_inside(path: str, where: str, files: Mapping[str, Sequence[str]]) -> None:
    """Refuse a copy whose card (README.md) names files outside it: a card must not expose other files of this machine."""
    inside = os.path.join(os.path.abspath(path), "")
    # Links are not resolved, because the hub's cache consists of links.
    outside = [name for names in files.values() for name in names if not os.path.abspath(name).startswith(inside)]
    if outside:
        raise DataError(f"{where}: its card names the file {outside[0]!r}, which is not part of it; correct README.md")


def _table(source: HubSource, rows: Dataset) -> Table:
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    label = f"data set {source.id!r}"
    if len(rows) == 0:
        raise DataError(f"{label}: split={source.split!r} is empty; name a split with rows")

    def cells(column: str) -> list[Any]:
        with explained(f"{label}: column {column!r} cannot be read", "one of its files is damaged: copy it again"):
            if column in rows.column_names:
                return list(rows[column])
            top = column.partition(".")[0]
            return [cell_at({top: cell}, column) for cell in rows[top]]

    return Table(
        label=label,
        columns=list(column_names(rows.features)),
        ids=[f"{last_part(source)}-{index}" for index in range(len(rows))],
        cells=cells,
        place=lambda row, column: f"{label}, row {row}, column {column!r}",
    )
