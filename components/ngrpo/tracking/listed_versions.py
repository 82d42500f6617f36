"""Versions of a registered model, read from MLflow's database file without importing MLflow: enough to refuse a missing one at once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

_NUMBERS = (
    "SELECT version FROM model_versions WHERE name = ? AND current_stage <> 'Deleted_Internal' ORDER BY version DESC"
)
_ALIASES = "SELECT alias FROM registered_model_aliases WHERE name = ?"
_SECONDS_TO_WAIT = 1.0


class ListedVersions(NamedTuple):
    """What the registry has of one model."""

    numbers: list[str]
    """Numbers of the versions, newest first."""
    aliases: frozenset[str]
    """Aliases that name one of them."""


def listed_versions(database: Path, model_name: str) -> ListedVersions | None:
    """Return the versions of a model and their aliases.

    Args:
        database: MLflow's SQLite file; it is only read.
        model_name: The registered model.

    Returns:
        None if the file is missing, locked or damaged, or has other tables: MLflow itself has to be asked, and explains what is wrong.
    """
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", _SECONDS_TO_WAIT, uri=True)) as opened:
            numbers = [str(number) for (number,) in opened.execute(_NUMBERS, (model_name,))]
            aliases = frozenset(alias for (alias,) in opened.execute(_ALIASES, (model_name,)))
    except sqlite3.Error:
        return None
    return ListedVersions(numbers, aliases)
