"""The way to Kubernetes itself, for what Kubeflow's API does not tell: pods, their logs, queues, and what a run needs there."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.incluster_config import InClusterConfigLoader
from urllib3.exceptions import HTTPError

from ngrpo.config.cluster import TRAINING_TOKEN
from ngrpo_kfp.components.launching.pending_pods import image_wait
from ngrpo_kfp.pipelines.kubeflow.client import RETRIES, ClusterError, namespace
from ngrpo_kfp.pipelines.kubeflow.pods import RUN_LABEL, STAGE_LABEL

KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
VISIBILITY = "/apis/visibility.kueue.x-k8s.io/v1beta2"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
WORKFLOWS = "/apis/argoproj.io/v1alpha1"

JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of the pods of a TrainJob: its name."""

PATIENCE = timedelta(minutes=10)
"""How long an image may fail to be pulled: a registry that restarts, or a limit on pulls, may take minutes."""

_CURES = dict.fromkeys((409, 412, 429, 500, 502, 503, 504), "try again in a minute")
_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer


class KubernetesError(ClusterError):
    """Kubernetes cannot be asked: there is no way to it, it does not answer, or it refuses."""

    def __init__(self, message: str, status: int | None = None):
        """Say what is wrong.

        Args:
            message: One line with the cure.
            status: HTTP status of the refusal; none where nothing answered.
        """
        super().__init__(message)
        self.status = status


class Kubernetes:
    """The cluster that `KUBECONFIG` names, or that of this pod, as the account of `cluster.training_token` if its token is there."""

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
        return self._call("GET", path, query)

    def items(self, path: str, **query: str) -> list[Any]:
        """Return the objects of a list by its path, none where there is no such kind; see `get`."""
        found = self.get(path, **query)
        return list(found.get("items") or ()) if found is not None else []

    def delete(self, path: str) -> bool:
        """Delete an object with all that it owns; returns whether it was there.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        return self._call("DELETE", path, {"propagationPolicy": "Background"}) is not None

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
                reserved = next((each for each in conditions if each["type"] == "QuotaReserved"), {})
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

    def _call(self, verb: str, path: str, query: Mapping[str, str]) -> Any:
        try:
            with _explained():
                return self._client.call_api(
                    path,
                    verb,
                    query_params=list(query.items()),
                    header_params={"Accept": "application/json"},
                    response_type="object",
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _request_timeout=_TIMEOUT,
                )
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise


def unpullable(run_id: str) -> str | None:
    """Return which image of a run cannot be pulled, as one line with the cure; none while all is well, or may still become so.

    Kubernetes tries for ever to pull an image, and Kubeflow waits with it until the pod's deadline.

    Args:
        run_id: The run; a pod of it that has waited for its image for `PATIENCE` counts.

    Raises:
        KubernetesError: Kubernetes cannot be asked.
    """
    return never_pulled(Kubernetes().pods(run_id))


def never_pulled(pods: Iterable[Any]) -> str | None:
    """Return which image of some pods, `V1Pod`, cannot be pulled; see `unpullable`."""
    for pod in pods:
        waits = image_wait(pod)
        if waits is not None and datetime.now(UTC) - _placed(pod) >= PATIENCE:
            node = pod.metadata.labels[STAGE_LABEL]
            return f"the image of {node} could not be pulled for {PATIENCE.seconds // 60} minutes: {waits}"
    return None


def _placed(pod: Any) -> datetime:
    """Return when a pod got its node; what it waited in a queue before counts for nothing."""
    conditions = pod.status.conditions or ()
    placed = (each.last_transition_time for each in conditions if each.type == "PodScheduled" and each.status == "True")
    time: datetime = next(placed, None) or pod.metadata.creation_timestamp
    return time


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the API complains about into one line."""
    try:
        yield
    except client.ApiException as error:
        cure = _CURES.get(error.status, f"check KUBECONFIG and your rights in namespace {namespace()}")
        raise KubernetesError(f"Kubernetes refuses ({error.status} {_message(error)}): {cure}", error.status) from error
    except HTTPError as error:
        raise KubernetesError(f"Kubernetes cannot be reached ({type(error).__name__}): check KUBECONFIG") from error


def _message(error: client.ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
