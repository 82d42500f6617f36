"""An MLflow database in a SQLite file: made or upgraded once, before anyone opens it."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow.db
from alembic.util.exc import CommandError
from sqlalchemy.exc import SQLAlchemyError

from ngrpo.errors import TrackingError

_SECONDS_TO_WAIT = 20.0
_CURES = {
    sqlite3.SQLITE_NOTADB: "move that file away, or name another one",
    sqlite3.SQLITE_BUSY: "end the process that holds it, or name another file",
    sqlite3.SQLITE_FULL: "make room on the disk, or name a file on another one",
}

# What it reports below warnings are the steps of making a database.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def prepare_database(uri: str) -> None:
    """Make or upgrade an MLflow database, so that any number of processes may open it afterwards.

    MLflow makes its tables when it first opens a database, and several that do so at once break each other's migrations. Here
    they wait for one another.

    Args:
        uri: `sqlite:///path`; the path may be relative.

    Raises:
        TrackingError: The file cannot be used, is held by another process, or was written by a newer MLflow.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    with _locked(path, uri):
        _require_usable(path, uri)
        try:
            mlflow.db.upgrade.callback(uri)  # as `mlflow db upgrade`: an empty one is filled, a current one left alone
        except CommandError as error:
            raise _unusable(uri, str(error), "a newer MLflow wrote it: upgrade mlflow, or name another file") from error
        except SQLAlchemyError as error:
            raise _unusable(uri, str(error).splitlines()[0], "name another file") from error


@contextmanager
def _locked(path: Path, uri: str) -> Iterator[None]:
    """Let one process at a time prepare a database; the kernel releases the lock of a process that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(uri, error.strerror or str(error), "name a file that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _require_usable(path: Path, uri: str) -> None:
    """Take SQLite's write lock on a file for a moment: of a file that cannot be used, MLflow tries for minutes."""
    try:
        with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        cure = _CURES.get(error.sqlite_errorcode & 0xFF, "name a file that can be written")
        raise _unusable(uri, str(error), cure) from error


def _unusable(uri: str, problem: str, cure: str) -> TrackingError:
    return TrackingError(f"MLFLOW_TRACKING_URI={uri}: {problem}; {cure}")
