"""Client for Kubernetes: facts of runs that Kubeflow's API lacks, what a run needs there, and the checks of `ngrpo doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes import client

from ngrpo.config.cluster import STAGE_LABEL, TRAINING_TOKEN
from ngrpo_kfp.components.serving.kubernetes_objects import TIMEOUT, KubernetesError, KubernetesObjects, explained
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.pods import RUN_LABEL

KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
VISIBILITY = "/apis/visibility.kueue.x-k8s.io/v1beta2"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
WORKFLOWS = "/apis/argoproj.io/v1alpha1"

JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of the pods of a TrainJob: its name."""


class Kubernetes(KubernetesObjects):
    """The cluster that `KUBECONFIG` names, or this pod's, as the account of `cluster.training_token` if its token is mounted."""

    def __init__(self) -> None:
        """Read how to reach the cluster, without a request to it.

        Raises:
            KubernetesError: No cluster is configured.
        """
        super().__init__(Path(TRAINING_TOKEN))

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether this account may do something in a namespace, for example `create` `pods` or `get` `pods/log`.

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
            node: Name of a node; None for the pods of all nodes.

        Raises:
            KubernetesError: The cluster refuses or cannot be reached.
        """
        return self._pods(f"{RUN_LABEL}={run_id},{STAGE_LABEL}" + ("" if node is None else f"={node}"))

    def pods_of_job(self, job: str) -> list[Any]:
        """Return the pods of a TrainJob, which have no label of a run, oldest first; see `pods`."""
        return self._pods(f"{JOB_LABEL}={job}")

    def _pods(self, selector: str) -> list[Any]:
        with explained():
            found = client.CoreV1Api(self._client).list_namespaced_pod(
                namespace(), label_selector=selector, _request_timeout=TIMEOUT
            )
        return sorted(found.items, key=lambda pod: pod.metadata.creation_timestamp)

    def log_lines(self, pod: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the log lines of the main container of a pod.

        Args:
            pod: Name of the pod.
            follow: Continue until the container ends, or prints nothing for an hour.

        Raises:
            KubernetesError: There is no such pod, or the cluster refuses or cannot be reached.
        """
        timeout = (TIMEOUT[0], 3600) if follow else TIMEOUT
        with explained():
            log = client.CoreV1Api(self._client).read_namespaced_pod_log(
                pod, namespace(), container="main", follow=follow, _preload_content=False, _request_timeout=timeout
            )
            for line in log:
                yield line.decode(errors="replace").rstrip("\n")

    def why_queued(self, uid: str) -> str | None:
        """Return why Kueue has not admitted a pod or job yet, with its place in the queue; None if it has, or does not know it.

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
        """Return the place of a workload in its cluster queue as text; empty if Kueue's API of pending workloads cannot be used."""
        path = f"{VISIBILITY}/namespaces/{namespace()}/localqueues/{queue}/pendingworkloads"
        try:
            pending = self.items(path)
        except KubernetesError as error:
            if error.status is None:
                raise
            return ""  # it is a separate service, which this account may not be allowed to use, or which may be down
        places = (each["positionInClusterQueue"] for each in pending if each["metadata"]["name"] == workload)
        return next((f", place {place + 1} of its cluster queue" for place in places), "")
