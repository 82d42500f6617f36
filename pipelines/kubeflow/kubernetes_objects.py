"""Objects of Kubernetes as `ngrpo doctor` reads, makes and deletes them: refusals with a cure of their kind, and the server's clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from kubernetes import client
from urllib3.exceptions import HTTPError

from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes, KubernetesError

_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer
_AGAIN = "somebody else changes it at this moment: run the command again"
_CURES = {
    401: "log in to the cluster again, or correct KUBECONFIG",
    403: "ask whoever runs the cluster for that right, or to run this command",
    409: _AGAIN,
    412: _AGAIN,
    429: "it is overloaded: run the command again in a minute",
}


class Refused(KubernetesError):
    """Kubernetes answers a request with an error."""

    def __init__(self, status: int, message: str):
        """Say what was refused.

        Args:
            status: HTTP status of the answer.
            message: What it says.
        """
        self.said = f"Kubernetes refuses ({status}: {message})"
        self.cure = _CURES.get(status, "see the log of its API server, and run the command again")
        super().__init__(f"{self.said}: {self.cure}", status)


class Objects(Kubernetes):
    """Objects of the cluster that `KUBECONFIG` names."""

    skew: float | None = None
    """Seconds by which the clock of its API was ahead of ours at the last answer; none before the first."""

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """Make an object, and return it.

        Args:
            path: Path of the objects of that kind.
            body: The object.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached; in the latter case it may have been made.
        """
        return self._ask("POST", path, {}, body)

    def delete_now(self, path: str) -> None:
        """Delete a pod without grace, if it is there.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        self._call("DELETE", path, {"gracePeriodSeconds": "0"})

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Say whether this account may do something in a namespace, for example `create` `pods` or `get` `pods/log`.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        name, _, part = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "resource": name, "subresource": part}
        review = self.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            },
        )
        return bool(review["status"]["allowed"])

    def _call(self, verb: str, path: str, query: Mapping[str, str]) -> Any:
        try:
            return self._ask(verb, path, query)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def _ask(self, verb: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Any:
        before = datetime.now(UTC)
        try:
            answer, _, headers = self._client.call_api(
                path,
                verb,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _request_timeout=_TIMEOUT,
            )
        except client.ApiException as error:
            raise Refused(int(error.status or 0), _message(error)) from error
        except HTTPError as error:
            raise KubernetesError(f"Kubernetes cannot be reached ({type(error).__name__}): check KUBECONFIG") from error
        if not isinstance(answer, dict):
            raise KubernetesError("what KUBECONFIG names does not answer as the API of Kubernetes does: correct it")
        if date := headers.get("Date"):
            self.skew = skew(date, before)
        return answer


def skew(date: str, before: datetime) -> float | None:
    """Return the seconds by which a server's clock is ahead of ours; none if its header tells no time.

    Args:
        date: The header `Date` of its answer.
        before: Our time when it was asked.
    """
    try:
        told = parsedate_to_datetime(date)
    except ValueError:
        return None
    after = datetime.now(UTC)
    return (told.astimezone(UTC) - before - (after - before) / 2).total_seconds()


def _message(error: client.ApiException) -> str:
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = str(error.reason)
    return " ".join(said.split())
