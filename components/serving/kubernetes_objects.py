"""Client for Kubernetes objects, for commands and for steps that change objects."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.incluster_config import InClusterConfigLoader
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from ngrpo.errors import ClusterError

RETRIES = Retry(
    total=3,
    backoff_factor=0.5,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("GET", "HEAD"),
    raise_on_status=False,
    retry_after_max=30,
)
"""Only requests that change nothing are retried, because an interrupted request may have been carried out. `Retry-After` is obeyed, up to
30 seconds."""

_AGAIN = "somebody else changes it at this moment: run the command again"
_CURES = {
    401: "log in to the cluster again, or correct KUBECONFIG",
    403: "ask whoever runs the cluster for that right, or to run this command",
    404: "see that KUBECONFIG and KF_PIPELINES_NAMESPACE name the cluster and the namespace that you mean",
    409: _AGAIN,
    412: _AGAIN,
    429: "it is overloaded: run the command again in a minute",
}
_CURE = "see the log of its API server, and run the command again"
TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer


class KubernetesError(ClusterError):
    """Kubernetes cannot be used: no cluster is configured, it does not answer, or it refuses."""

    status: int | None = None
    """HTTP status of the refusal; None if nothing answered."""


class Refused(KubernetesError):
    """Kubernetes answers a request with an error."""

    def __init__(self, status: int, message: str):
        """Make the error of a refusal.

        Args:
            status: HTTP status of the answer.
            message: Its message.
        """
        self.status = status
        self.said = f"Kubernetes refuses ({status}: {message})"
        self.cure = _CURES.get(status, _CURE)
        super().__init__(f"{self.said}: {self.cure}")


class KubernetesObjects:
    """The objects of the cluster that `KUBECONFIG` names, or of this pod's cluster."""

    skew: float | None = None
    """Seconds by which the API server's clock was ahead of ours at the last answer; None before the first."""

    def __init__(self, account: Path) -> None:
        """Read how to reach the cluster, without a request to it.

        Args:
            account: Directory with `token` and `ca.crt` of the account to use, if these files exist.

        Raises:
            KubernetesError: No cluster is configured.
        """
        settings, token = client.Configuration(), account / "token"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints which configuration it falls back on
                if token.exists():
                    InClusterConfigLoader(str(token), str(token.with_name("ca.crt"))).load_and_set(settings)
                else:
                    config.load_config(client_configuration=settings)
        except config.ConfigException as error:
            raise KubernetesError(f"there is no way to Kubernetes ({error}): set KUBECONFIG") from error
        settings.retries = RETRIES
        self._client = client.ApiClient(settings)

    def get(self, path: str, **query: str) -> Any:
        """Return an object by its path, as JSON; None if there is no such object or kind.

        Args:
            path: For example `/api/v1/namespaces/kubeflow/secrets/hub`.
            query: Parameters, for example `labelSelector`.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        return self._unless_gone("GET", path, query)

    def items(self, path: str, **query: str) -> list[Any]:
        """Return the objects of a list by its path, an empty list if there is no such kind; see `get`."""
        found = self.get(path, **query)
        return list(found.get("items") or ()) if found is not None else []

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """Create an object, and return it.

        Args:
            path: Path of the objects of that kind.
            body: The object.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached; in the latter case the object may have been created.
        """
        return self._ask("POST", path, {}, body)

    def replace(self, path: str, body: Mapping[str, Any]) -> Any:
        """Replace an object, and return it.

        Args:
            path: Path of the object.
            body: The object, with the `resourceVersion` of the one that it replaces.

        Raises:
            KubernetesError: The cluster refuses, for example because somebody else changed it, or cannot be reached.
        """
        return self._ask("PUT", path, {}, body)

    def delete(self, path: str, *, grace_seconds: int | None = None) -> bool:
        """Delete an object with all that it owns; returns whether it was there.

        Args:
            path: Path of the object.
            grace_seconds: Grace period of a pod; by default the pod's own.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        query = {"propagationPolicy": "Background"}
        if grace_seconds is not None:
            query["gracePeriodSeconds"] = str(grace_seconds)
        return self._unless_gone("DELETE", path, query) is not None

    def _unless_gone(self, verb: str, path: str, query: Mapping[str, str]) -> Any:
        try:
            return self._ask(verb, path, query)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def _ask(self, verb: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Any:
        before = datetime.now(UTC)
        with explained():
            answer, _, headers = self._client.call_api(
                path,
                verb,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _request_timeout=TIMEOUT,
            )
        if not isinstance(answer, dict):
            raise KubernetesError("what KUBECONFIG names does not answer as the API of Kubernetes does: correct it")
        if date := headers.get("Date"):
            self.skew = skew(date, before)
        return answer


def skew(date: str, before: datetime) -> float | None:
    """Return the seconds by which a server's clock is ahead of ours; None if its header has no time.

    Args:
        date: The header `Date` of its answer.
        before: Our time of the request.
    """
    try:
        told = parsedate_to_datetime(date)
    except ValueError:
        return None
    after = datetime.now(UTC)
    return (told.astimezone(UTC) - before - (after - before) / 2).total_seconds()


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the API into one line."""
    try:
        yield
    except client.ApiException as error:
        raise Refused(int(error.status or 0), _message(error)) from error
    except HTTPError as error:
        raise KubernetesError(f"Kubernetes cannot be reached ({type(error).__name__}): check KUBECONFIG") from error


def _message(error: client.ApiException) -> str:
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = str(error.reason)
    return " ".join(said.split())
