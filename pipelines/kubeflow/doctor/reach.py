"""Test what can be reached from here: the artifact store, MLflow, the API of Kubeflow Pipelines. `ngrpo doctor` runs it in a pod.

A stage's pod has other network policies, secrets and certificates than the user's machine, so only a test from a pod shows whether a
stage will find what it needs. The test only reads.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path

from ngrpo.environment import addresses_without_users, adopt_s3_names, redacted
from ngrpo.errors import NGRPOError, StoreError, TrackingError
from ngrpo.storage.objects import ObjectStore

MARK = "ngrpo reaches "
"""Prefix of the log line with the results, because libraries print lines too."""
CLOCK_SECONDS = 300.0
"""Difference between two clocks that is reported. S3 services refuse requests whose time is 15 minutes off."""
_SECONDS = 10.0  # time limit of an answer
_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # where Kubeflow's PodDefault `access-ml-pipeline` puts it


@dataclass(frozen=True)
class Reached:
    """The outcome of one test."""

    name: str
    """What was tested."""
    ok: bool
    """Whether it can be used."""
    said: str
    """One line: what was seen and, if it cannot be used, the cure."""


def reached() -> Iterator[Reached]:
    """Test the services that the environment names: `NGRPO_STORE`, `MLFLOW_TRACKING_URI` and `KF_PIPELINES_ENDPOINT`."""
    with addresses_without_users():
        if uri := os.environ.get("NGRPO_STORE"):
            yield _tried("store", lambda: _store(uri))
            yield from _clock()
        if tracking := os.environ.get("MLFLOW_TRACKING_URI"):
            yield _tried("MLflow", lambda: _mlflow(tracking))
        if endpoint := os.environ.get("KF_PIPELINES_ENDPOINT"):
            yield _tried("pipelines", lambda: _pipelines(endpoint))


def _tried(name: str, attempt: Callable[[], str]) -> Reached:
    try:
        return Reached(name, True, attempt())
    except NGRPOError as error:
        return Reached(name, False, redacted(str(error)))


def _store(uri: str) -> str:
    """Return a line on a store that can be used.

    Raises:
        NGRPOError: It cannot.
    """
    try:
        ObjectStore(uri, patience=0.0).check()
    except NGRPOError as error:
        if _region() is not None or "answered 400" not in str(error):
            raise
        raise StoreError(
            f"{error}; no region is set, so requests are signed for us-east-1: set AWS_DEFAULT_REGION to the service's own, for pods "
            "as NGRPO_S3_REGION in cluster.environment"
        ) from error
    where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    region = (
        _region() or "no region set: signed for us-east-1, which is right for most services and which AWS redirects"
    )
    return f"{uri} at {where} can be used ({region})"


def _region() -> str | None:
    return os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")


def _clock() -> Iterator[Reached]:
    """Compare the local clock with that of the store, if its answers have a date."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    try:
        date = _answer(endpoint, {})[1].get("Date")
        ahead = parsedate_to_datetime(date).timestamp() - time.time() if date else None
    except (OSError, ValueError):
        return  # the line on the store reports the problem
    if ahead is not None:
        late = abs(ahead) > CLOCK_SECONDS
        cure = ", and S3 refuses requests that are 15 minutes off: let NTP set both clocks" if late else ""
        direction = "ahead of" if ahead > 0 else "behind"
        yield Reached("clock", not late, f"the store's is {abs(ahead):.0f} s {direction} ours{cure}")


def _mlflow(uri: str) -> str:
    """Return a line on an MLflow that can be used.

    Raises:
        NGRPOError: It cannot.
    """
    if not uri.startswith(("http://", "https://")):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={redacted(uri)}: pods have no file in common: name a server (http://host:port)"
        )
    from ngrpo.tracking.connection import connect  # importing mlflow takes seconds, and the store is reported before it

    connect()
    try:
        version = _answer(f"{uri.rstrip('/')}/version", {})[2].strip()
    except (OSError, ValueError):
        version = ""  # a proxy in front of it may block this path
    return f"{uri} can be used" + (f" (version {version})" if version else "")


def _pipelines(endpoint: str) -> str:
    """Return a line on a Kubeflow Pipelines that can be used.

    Raises:
        NGRPOError: It cannot.
    """
    path = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or _TOKEN)
    token = os.environ.get("KF_PIPELINES_TOKEN") or (path.read_text(encoding="utf-8") if path.exists() else "")
    headers = {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}
    named = f"KF_PIPELINES_ENDPOINT={endpoint}"
    try:
        status, _, text = _answer(f"{endpoint.rstrip('/')}/apis/v2beta1/healthz", headers)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NGRPOError(
            f"{named} cannot be reached ({type(reason).__name__}): correct the address, or let a network policy allow it"
        ) from error
    if status in (401, 403):
        raise NGRPOError(
            f"{named} refuses the token ({status}): name the label of a PodDefault in cluster.labels "
            '(access-ml-pipeline = "true"), or put KF_PIPELINES_TOKEN into a secret'
        )
    if status != 200 or "multi_user" not in text:  # a proxy sends its login page
        raise NGRPOError(
            f"{named} answers {status}, and not as the API of Kubeflow Pipelines does: correct the address, or see the log of ml-pipeline"
        )
    return f"{endpoint} can be used"


def _answer(url: str, headers: Mapping[str, str]) -> tuple[int, Message, str]:
    """Return status, headers and the beginning of the text of an answer, whatever the status.

    Raises:
        OSError: Nothing answers.
        ValueError: The address is invalid.
    """
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.status, answer.headers, answer.read(1000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, ""
    except HTTPException as error:
        raise OSError(f"no HTTP: {type(error).__name__}") from error


if __name__ == "__main__":
    adopt_s3_names()
    for one in reached():
        print(MARK + json.dumps(asdict(one)), flush=True)
