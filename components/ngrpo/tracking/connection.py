"""The way to MLflow: which one it is, whether it answers, and errors that say what to do."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.db
from alembic.util.exc import CommandError
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ngrpo.errors import TrackingError

TRACKING_URI = "MLFLOW_TRACKING_URI"

# Only while it is asked whether a server is there at all. Later calls keep mlflow's patience: a training of days must not
# end because the server was restarted.
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_SECONDS_TO_WAIT_FOR_A_LOCK = 20.0
_CURES = {
    sqlite3.SQLITE_NOTADB: "move that file away, or name another one",
    sqlite3.SQLITE_BUSY: "end the process that holds it, or name another file",
    sqlite3.SQLITE_FULL: "make room on the disk, or name a file on another one",
}
_REFUSALS = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}

# What it reports below warnings are the steps of making a database.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def connect() -> MlflowClient:
    """Return a client of the MLflow that `MLFLOW_TRACKING_URI` names, after making sure that it answers.

    Raises:
        TrackingError: The variable is not set or names no server and no SQLite file, or what it names cannot be used.
    """
    uri = os.environ.get(TRACKING_URI)
    if not uri:
        raise TrackingError(f"{TRACKING_URI} is not set: name a server (http://…) or a file (sqlite:////…/mlflow.db)")
    return _connected(uri)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{path}.lock").open("ab")
    except OSError as error:
        raise _unusable(uri, error.strerror or str(error)) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _require_usable(path, uri)
        try:
            _open(uri)
        except (MlflowException, SQLAlchemyError, CommandError) as error:
            raise _unusable(uri, _first_line(error)) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turn what MLflow and its object storage complain about into one line.

    Raises:
        TrackingError: MLflow or its object storage refused, or could not be reached.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, Boto3Error, BotoCoreError, ClientError) as error:
        refused = isinstance(error, MlflowException) and error.error_code in _REFUSALS
        cure = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what the server accepts"
            if refused
            else "check that it is up and that this address is right"
        )
        uri = os.environ.get(TRACKING_URI, "")
        # The original error may spell out a password, so it is not shown as the cause.
        raise TrackingError(f"{TRACKING_URI}={without_password(uri)}: {_first_line(error)}; {cure}") from None


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or remove those that are none, while the context is open."""
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def without_password(text: str) -> str:
    """Leave user and password out of the addresses in a text."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1", text)


@cache  # once a process and address; an error is not remembered
def _connected(uri: str) -> MlflowClient:
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite" and uri.startswith("sqlite:///"):
        prepare_database(uri)
    elif scheme in ("http", "https"):
        with explained(), environment(_IMPATIENCE):
            MlflowClient(uri).search_experiments(max_results=1)
    else:
        raise TrackingError(
            f"{TRACKING_URI}={without_password(uri)}: name a server (http://…) or a file (sqlite:////…/mlflow.db)"
        )
    return MlflowClient(uri)


def _require_usable(path: Path, uri: str) -> None:
    """Take SQLite's write lock on a file for a moment: MLflow itself would retry for minutes."""
    try:
        with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT_FOR_A_LOCK, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        cure = _CURES.get(error.sqlite_errorcode, "name a file that can be written")
        raise _unusable(uri, str(error), cure) from error


def _open(uri: str) -> None:
    """Open a database, which makes its tables if it is empty, and upgrade it if it is of an older MLflow."""
    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        mlflow.db.upgrade.callback(uri)
        MlflowClient(uri).search_experiments(max_results=1)


def _unusable(uri: str, problem: str, cure: str | None = None) -> TrackingError:
    if cure is None:
        newer = "Can't locate revision" in problem
        cure = "a newer MLflow wrote it: upgrade mlflow, or name another file" if newer else "name another file"
    return TrackingError(f"{TRACKING_URI}={uri}: {problem}; {cure}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_password(lines[0])[:300]


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
