"""Problems from the user's own files: a file, a directory or a glob, on this machine or in object storage."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ngrpo.config import FilesSource
from ngrpo.config.sources import is_bucket
from ngrpo.data.cells import cell_at, column_names
from ngrpo.data.columns import Table, problems_of, require_columns
from ngrpo.data.copies import planned
from ngrpo.data.locations import download
from ngrpo.data.own_files import own_files, place_of
from ngrpo.data.problem import Problem
from ngrpo.data.tables import Row, read_table
from ngrpo.errors import DataError


def load(source: FilesSource) -> list[Problem]:
    """Return the problems of all tables that match the path, sorted by file name; see `ngrpo.data.columns.problems_of`.

    Raises:
        DataError: No table matches, or one is empty or damaged, lacks a column, or changed after the run was planned.
        StoreError: The object store cannot be reached or refuses the credentials.
    """
    with tempfile.TemporaryDirectory() as scratch, planned(source, own_files):
        names = [*own_files(source, lambda path: "")]
        base = place_of(source.path).base
        if is_bucket(source.path):
            download(base, Path(scratch), lambda key: key in names, named=source.named)
            base = scratch
        rows: list[tuple[str, int, Row]] = []
        for name in names:
            read = read_table(Path(base) / name, name)
            if read:
                require_columns(source, f"{source.named}: {name}" if len(names) > 1 else source.named, _columns(read))
            rows += [(name, number, row) for number, row in enumerate(read, 1)]
    if not rows:
        raise DataError(f"{source.named}: no rows; name a table with rows")
    return problems_of(source, _table(source, rows[: source.limit]))


def _table(source: FilesSource, rows: list[tuple[str, int, Row]]) -> Table:
    return Table(
        label=source.named,
        columns=_columns([row for _, _, row in rows]),
        ids=[f"{name}:{number}" for name, number, _ in rows],
        cells=lambda column: [cell_at(row, column) for _, _, row in rows],
        place=lambda row, column: f"{rows[row][0]}, row {rows[row][1]}, column {column!r}",
    )


def _columns(rows: list[Row]) -> list[str]:
    """Return the union of the rows' columns; a JSON row may lack some of them."""
    return list(dict.fromkeys(column for row in rows for column in column_names(row)))
