"""An MLflow database in a SQLite file: created or upgraded once, before any process opens it, and never left incomplete.

MLflow creates and changes its tables in many steps, and a database that was interrupted between two of them is useless. So the file itself
is not touched: a new database is created, and an old one upgraded, in a copy that replaces the file once it is complete.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow.db
from alembic.util.exc import CommandError
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ngrpo.errors import TrackingError
from ngrpo.storage.whole_files import put_in_place
from ngrpo.tracking.addresses import database_uri

_SECONDS_TO_WAIT = 20.0
_CURES = {
    sqlite3.SQLITE_NOTADB: "move that file away, or name another one",
    sqlite3.SQLITE_CORRUPT: "move that file away, or put a sound copy in its place",
    sqlite3.SQLITE_BUSY: "end the process that holds it, or name another file",
    sqlite3.SQLITE_FULL: "make room on the disk, or name a file on another one",
}
_CONTENT = ("runs", "registered_models", "model_versions", "logged_models", "trace_info")
"""Tables whose loss a user would notice."""

# It logs every migration step, and the tracebacks of errors that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
_logger = logging.getLogger(__name__)


def prepare_database(uri: str) -> None:
    """Create or upgrade an MLflow database, so that any number of processes may open it afterwards.

    MLflow creates its tables when it first opens a database, and processes that do so at the same time break each other's migrations.
    Here a lock makes them wait for each other. If a process is killed, the old file is unchanged. The file that an upgrade replaces is
    kept as `<name>.<schema version>.bak`.

    Args:
        uri: `sqlite:///path` as SQLAlchemy parses it, for example from `database_uri`; the path may be relative.

    Raises:
        TrackingError: The file cannot be used, is held by another process, or was written by a newer MLflow.
    """
    path = Path(make_url(uri).database or "")
    with _locked(path, uri):
        tables, version = found = _look_into(path, uri)
        if _is_complete(found):
            return
        partial = path.with_name(f"{path.name}.new")
        try:
            _remove(partial)
            if not tables:
                _build(partial, uri)
                _put(partial, path)
            else:
                _upgrade(path, partial, tables, version, uri)
        except OSError as error:
            raise _unusable(uri, f"{error.strerror}, {_free(path)}", "make room, or name another file") from error
        finally:
            _remove(partial)


def _upgrade(path: Path, partial: Path, tables: set[str], version: str | None, uri: str) -> None:
    """Upgrade a copy and put it in place; the original is kept under another name."""
    with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)) as old:
        with closing(sqlite3.connect(partial)) as copy:
            try:
                old.backup(copy)
            except sqlite3.Error as error:
                raise _unusable_sqlite(uri, path, error) from error
        failure = None
        try:
            _build(partial, uri)
        except TrackingError as error:
            if not _steps_were_taken(error):
                raise
            failure = error
        if failure is None and _is_complete(_look_into(partial, uri)):
            kept = _free_name(path.with_name(f"{path.name}.{version or 'unversioned'}.bak"))
            said = "was upgraded"
        elif _has_content(old, tables):
            raise _unusable(
                uri,
                "an earlier start of MLflow was interrupted while it changed the tables",
                f"replace it by an earlier copy ({path.name}.*.bak, if there is one), or move that file away",
            ) from failure
        else:
            kept = _free_name(path.with_name(f"{path.name}.half-made"))
            said = "was incomplete, without any run in it, and was created again"
            _remove(partial)
            _build(partial, uri)
        os.link(path, kept)
        _put(partial, path)
    _logger.warning("MLflow: %s %s; the old file is kept as %s", path, said, kept.name)


def _build(partial: Path, uri: str) -> None:
    """Let MLflow create or upgrade the tables of a private file."""
    try:
        mlflow.db.upgrade.callback(database_uri(partial.absolute()))  # as `mlflow db upgrade`
    except CommandError as error:
        raise _unusable(uri, str(error), "a newer MLflow wrote it: upgrade mlflow, or name another file") from error
    except (
        SQLAlchemyError,
        MlflowException,
        ValueError,
        LookupError,
    ) as error:  # a migration found tables or values that it does not expect
        original = getattr(error, "orig", None)
        if isinstance(original, sqlite3.Error):
            raise _unusable_sqlite(uri, partial, original) from error
        raise _unusable(uri, (str(error).splitlines() or [""])[0], "name another file") from error


def _put(partial: Path, path: Path) -> None:
    """Replace a file by a complete one, safely even if the power fails."""
    with closing(sqlite3.connect(partial, isolation_level=None)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA journal_mode = DELETE")
    # SQLite would replay a journal of the old file into the new one.
    for suffix in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    put_in_place(partial, path)


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _look_into(path: Path, uri: str) -> tuple[set[str], str | None]:
    """Return the tables of a file and the version of MLflow's schema; no tables if there is no file yet.

    SQLite's write lock is taken for a moment to find an unusable file at once: MLflow would retry for minutes.
    """
    if not path.exists():
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise _unusable(uri, f"nothing can be written to {path.parent}", "name a file that can be written")
        return set(), None
    try:
        with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = None
            if "alembic_version" in tables:
                row = database.execute("SELECT version_num FROM alembic_version").fetchone()
                version = None if row is None else str(row[0])
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _unusable_sqlite(uri, path, error) from error
    if tables and not tables & (set(FirstTables.metadata.tables) | {"alembic_version"}):
        raise _unusable(uri, "it is not a database of MLflow", "name another file")
    if tables <= {"alembic_version"} and version is None:
        return set(), None
    if version is not None and not tables & set(FirstTables.metadata.tables):
        raise _unusable(uri, "it is not a database of MLflow", "name another file")
    return tables, version


def _has_content(database: sqlite3.Connection, tables: set[str]) -> bool:
    return any(
        database.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None
        for table in _CONTENT
        if table in tables
    )


def _steps_were_taken(error: TrackingError) -> bool:
    """Whether a migration failed because some of its steps had been taken already, or some of an earlier one had not."""
    original = getattr(error.__cause__, "orig", None)
    if isinstance(original, sqlite3.Error):
        return original.sqlite_errorcode in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT)
    return not isinstance(error.__cause__, CommandError)


def _is_complete(found: tuple[set[str], str | None]) -> bool:
    tables, version = found
    return version == _get_latest_schema_revision() and tables >= set(Base.metadata.tables)


def _free_name(path: Path) -> Path:
    """Return an unused name, so that no earlier copy is overwritten."""
    names = (path if number == 0 else path.with_name(f"{path.name}.{number}") for number in range(10_000))
    return next(name for name in names if not name.exists())


@contextmanager
def _locked(path: Path, uri: str) -> Iterator[None]:
    """Hold a lock so that one process at a time prepares a database; the kernel releases it when the process ends."""
    lock = FileLock(f"{path}.lock", mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unusable(uri, error.strerror or str(error), "name a file that can be written") from error
    try:
        yield
    finally:
        lock.release()


def _unusable_sqlite(uri: str, path: Path, error: sqlite3.Error) -> TrackingError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    problem = f"{error}, {_free(path)}" if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) else str(error)
    return _unusable(uri, problem, _CURES.get(code, "name a file that can be written"))


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path.parent).free // 1024} KiB free, a new database takes about 1000"


def _unusable(uri: str, problem: str, cure: str) -> TrackingError:
    return TrackingError(f"MLFLOW_TRACKING_URI={uri}: {problem}; {cure}")
