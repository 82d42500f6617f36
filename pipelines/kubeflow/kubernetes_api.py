"""The way to Kubernetes itself: what Kubeflow's API does not tell of runs, what a run needs there, and what `ngrpo doctor` tries."""

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

from ngrpo.config.cluster import STAGE_LABEL, TRAINING_TOKEN
from ngrpo_kfp.pipelines.kubeflow.client import RETRIES, ClusterError, namespace
from ngrpo_kfp.pipelines.kubeflow.pods import RUN_LABEL

KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
VISIBILITY = "/apis/visibility.kueue.x-k8s.io/v1beta2"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
WORKFLOWS = "/apis/argoproj.io/v1alpha1"

JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of the pods of a TrainJob: its name."""

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
_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer


class KubernetesError(ClusterError):
    """Kubernetes cannot be asked: there is no way to it, it does not answer, or it refuses."""

    status: int | None = None
    """HTTP status of the refusal; none where nothing answered."""


class Refused(KubernetesError):
    """Kubernetes answers a request with an error."""

    def __init__(self, status: int, message: str):
        """Say what was refused.

        Args:
            status: HTTP status of the answer.
            message: What it says.
        """
        self.status = status
        self.said = f"Kubernetes refuses ({status}: {message})"
        self.cure = _CURES.get(status, _CURE)
        super().__init__(f"{self.said}: {self.cure}")


class Kubernetes:
    """The cluster that `KUBECONFIG` names, or that of this pod, as the account of `cluster.training_token` if its token is there."""

    skew: float | None = None
    """Seconds by which the clock of its API was ahead of ours at the last answer; none before the first."""

    def __init__(self) -> None:
        """Read how to reach the cluster; asks it nothing.

        Raises:
            KubernetesError: Nothing says where a cluster is.
        """
        settings, token = client.Configuration(), Path(TRAINING_TOKEN) / "token"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it falls back on
                if token.exists():
                    InClusterConfigLoader(str(token), str(token.with_name("ca.crt"))).load_and_set(settings)
                else:
                    config.load_config(client_configuration=settings)
        except config.ConfigException as error:
            raise KubernetesError(f"there is no way to Kubernetes ({error}): set KUBECONFIG") from error
        settings.retries = RETRIES
        self._client = client.ApiClient(settings)

    def get(self, path: str, **query: str) -> Any:
        """Return an object by its path, as JSON; none where there is no such object or no such kind.

        Args:
            path: For example `/api/v1/namespaces/kubeflow/secrets/hub`.
            query: Parameters, for example `labelSelector`.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        return self._unless_gone("GET", path, query)

    def items(self, path: str, **query: str) -> list[Any]:
        """Return the objects of a list by its path, none where there is no such kind; see `get`."""
        found = self.get(path, **query)
        return list(found.get("items") or ()) if found is not None else []

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """Make an object, and return it.

        Args:
            path: Path of the objects of that kind.
            body: The object.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached; in the latter case it may have been made.
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
            grace_seconds: Time that a pod has to end; by default its own.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        query = {"propagationPolicy": "Background"}
        if grace_seconds is not None:
            query["gracePeriodSeconds"] = str(grace_seconds)
        return self._unless_gone("DELETE", path, query) is not None

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

    def pods(self, run_id: str, node: str | None = None) -> list[Any]:
        """Return the pods of a run's nodes, oldest first: `V1Pod`.

        Args:
            run_id: The run.
            node: Name of a node; none for those of all nodes.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        return self._pods(f"{RUN_LABEL}={run_id},{STAGE_LABEL}" + ("" if node is None else f"={node}"))

    def pods_of_job(self, job: str) -> list[Any]:
        """Return the pods of a TrainJob, which bear no label of a run, oldest first; see `pods`."""
        return self._pods(f"{JOB_LABEL}={job}")

    def _pods(self, selector: str) -> list[Any]:
        with _explained():
            found = client.CoreV1Api(self._client).list_namespaced_pod(
                namespace(), label_selector=selector, _request_timeout=_TIMEOUT
            )
        return sorted(found.items, key=lambda pod: pod.metadata.creation_timestamp)

    def log_lines(self, pod: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines that the main container of a pod has printed.

        Args:
            pod: Name of the pod.
            follow: Go on until the container ends; a container that prints nothing for an hour ends it too.

        Raises:
            KubernetesError: There is no such pod, or the cluster refuses or cannot be reached.
        """
        timeout = (_TIMEOUT[0], 3600) if follow else _TIMEOUT
        with _explained():
            log = client.CoreV1Api(self._client).read_namespaced_pod_log(
                pod, namespace(), container="main", follow=follow, _preload_content=False, _request_timeout=timeout
            )
            for line in log:
                yield line.decode(errors="replace").rstrip("\n")

    def why_queued(self, uid: str) -> str | None:
        """Return why Kueue has not admitted a pod or a job yet, with its place in the queue; none if it has, or does not know it.

        Args:
            uid: Uid of the pod or of the job.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        for workload in self.items(f"{KUEUE}/namespaces/{namespace()}/workloads"):
            if any(owner["uid"] == uid for owner in workload["metadata"].get("ownerReferences", ())):
                conditions = (workload.get("status") or {}).get("conditions") or ()
                reserved: dict[str, Any] = next((each for each in conditions if each["type"] == "QuotaReserved"), {})
                if reserved.get("status") == "True":
                    return None
                queue = workload["spec"].get("queueName")
                place = self._place(queue, workload["metadata"]["name"])
                why = " ".join((reserved.get("message") or "Kueue has not looked at it yet").split())
                return f"waits in queue {queue}{place}: {why}"
        return None

    def _place(self, queue: str, workload: str) -> str:
        """Return the place of a workload in its cluster queue as text; empty where Kueue's API of pending workloads is closed to us."""
        path = f"{VISIBILITY}/namespaces/{namespace()}/localqueues/{queue}/pendingworkloads"
        try:
            pending = self.items(path)
        except KubernetesError as error:
            if error.status is None:
                raise
            return ""  # it is a service of its own, which may be closed to this account, or down
        places = (each["positionInClusterQueue"] for each in pending if each["metadata"]["name"] == workload)
        return next((f", place {place + 1} of its cluster queue" for place in places), "")

    def _unless_gone(self, verb: str, path: str, query: Mapping[str, str]) -> Any:
        try:
            return self._ask(verb, path, query)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def _ask(self, verb: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Any:
        before = datetime.now(UTC)
        with _explained():
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


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the API complains about into one line."""
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
