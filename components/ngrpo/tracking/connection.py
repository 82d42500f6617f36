"""The connection to MLflow: which server or file, whether it answers, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ngrpo.environment import environment, redacted
from ngrpo.errors import TrackingError

TRACKING_URI = "MLFLOW_TRACKING_URI"

# Only for the first check that a server answers. Later calls keep MLflow's own retries: a training of several days must
# not fail because the server was restarted.
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_WHAT_TO_NAME = "name a server (http://host:port) or a file (sqlite:////directory/mlflow.db)"
_CURES = {
    ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"): (
        "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it accepts"
    ),
    ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"): "; check that it is up and that the address is right",
}


def connect() -> MlflowClient:
    """Return a client of the MLflow that `MLFLOW_TRACKING_URI` names, after making sure that it answers.

    A database file is created or upgraded if needed.

    Raises:
        TrackingError: The variable is not set or names neither a server nor a SQLite file, or what it names cannot be used.
    """
    uri = os.environ.get(TRACKING_URI)
    if not uri:
        raise TrackingError(f"{TRACKING_URI} is not set: {_WHAT_TO_NAME}")
    return _connected(uri)


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of MLflow and its object storage into one line.

    Raises:
        TrackingError: MLflow or its object storage refused, or could not be reached.
    """
    try:
        yield
    # The original error may contain a password, so it is not shown as the cause.
    except MlflowException as error:
        uri = os.environ.get(TRACKING_URI, "")
        raise TrackingError(f"{TRACKING_URI}={redacted(uri)}: {_first_line(error)}{_cure(error)}") from None
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise TrackingError(
            f"object storage of MLflow: {_first_line(error)}; check AWS_ENDPOINT_URL and the AWS credentials"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redacted(lines[0])[:300]


def _cure(error: MlflowException) -> str:
    """Return how to fix an error, by its code; empty for other codes."""
    return next((cure for codes, cure in _CURES.items() if error.error_code in codes), "")


@cache  # once per process and address; a failure is not cached
def _connected(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        from ngrpo.tracking.database import prepare_database  # sqlalchemy and alembic, not needed with a server

        prepare_database(uri)
    elif uri.startswith(("http://", "https://")):
        with explained(), environment(_IMPATIENCE):
            MlflowClient(uri).search_experiments(max_results=1)
    else:
        raise TrackingError(f"{TRACKING_URI}={redacted(uri)}: {_WHAT_TO_NAME}")
    return MlflowClient(uri)
