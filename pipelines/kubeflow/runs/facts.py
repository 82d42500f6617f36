"""Facts of a run on a cluster from Kubeflow, Kubernetes and the artifact store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from kfp import Client

from ngrpo.config.cluster import STAGE_LABEL
from ngrpo.errors import ClusterError, NGRPOError, StoreError
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.tries import Try, tries_of
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.components.launching.pending_pods import why_pending
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import OVER, namespace, workflow_of
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import TRAINER, Kubernetes
from ngrpo_kfp.pipelines.kubeflow.runs.workflows import was_cancelled
from ngrpo_kfp.pipelines.kubeflow.submission import recorded_config
from ngrpo_kfp.pipelines.kubeflow.submitted_runs import key_of, may_be_a_job, tasks_of
from ngrpo_kfp.pipelines.planning.nodes import names_of, stage_of, task_name

_STORE_PATIENCE = 5.0
"""Short, because a user is waiting."""


class Job(NamedTuple):
    """A TrainJob."""

    uid: str
    pods: list[Any]
    """`V1Pod`, oldest first."""


class RunFacts:
    """Facts of a run from Kubeflow, Kubernetes and the artifact store, each read once when needed."""

    def __init__(self, client: Client, run: Any):
        """Read the pipeline of a run, a `V2beta1Run`.

        Raises:
            ClusterError: Kubeflow cannot be reached.
        """
        self.client, self.run, self.run_id = client, run, str(run.run_id)
        self.tasks = tasks_of(client, self.run_id)
        details = (run.run_details.task_details if run.run_details else None) or ()
        # If a driver was lost, Argo repeats the whole pipeline, so the last task of a name counts.
        self.details = {task.display_name: task for task in sorted(details, key=_started)}
        self.over = run.state in OVER
        self.notes: list[str] = []
        self.plans = not any(stage_of(node) in DECLARED for node in self.tasks)
        """Whether it is the run of a schedule, whose only task plans and submits another run."""
        known = names_of(also=self.tasks.keys())
        # A run's pipeline does not contain cached nodes; they are known if it is the pipeline of this version.
        self.nodes = known if self.tasks.keys() <= set(known) else list(self.tasks)

    @cached_property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the run. Its state in KFP 2.17 is then CANCELING, and finally FAILED, as for any failed run."""
        states = [self.run.state, *(each.state for each in self.run.state_history or ())]
        told = any(state in ("CANCELING", "CANCELED") for state in states)
        return told or (self.run.state == "FAILED" and was_cancelled(self.workflow))

    @cached_property
    def state(self) -> str:
        """State of the run: Kubeflow's in lower case, or `being cancelled` or `cancelled`."""
        if self.over:
            return "cancelled" if self.cancelled else str(self.run.state).lower()
        return "being cancelled" if self.cancelled else str(self.run.state or "waiting").lower()

    @cached_property
    def workflow(self) -> Mapping[str, Any]:
        """The run's Workflow as Argo left it; empty if it is not known."""
        try:
            return workflow_of(self.client, self.run_id)
        except ClusterError as error:
            self.notes.append(f"the messages of Argo are not known: {error}")
            return {}

    @cached_property
    def kubernetes(self) -> Kubernetes | None:
        """The Kubernetes client; None if Kubernetes cannot be used."""
        try:
            return Kubernetes()
        except KubernetesError as error:
            self.notes.append(f"pods are not looked at: {error}")
            return None

    @cached_property
    def pods(self) -> list[Any]:
        """The pods of all stages, `V1Pod`, oldest first, as far as they are known."""
        try:
            return self.kubernetes.pods(self.run_id) if self.kubernetes is not None else []
        except KubernetesError as error:
            self.notes.append(f"pods are not looked at: {error}")
            return []

    @cached_property
    def objects(self) -> ObjectStore | None:
        """The artifact store of the run; None if it cannot be reached."""
        try:
            objects = ObjectStore(recorded_config(self.client, self.run_id).cluster.store, patience=_STORE_PATIENCE)
            objects.check()
        except NGRPOError as error:
            self.notes.append(f"the records of stages are not known: {error}")
            return None
        return objects

    @cached_property
    def mlflow_run(self) -> str | None:
        """Id of the run's MLflow run, if its stages have opened one."""
        try:
            data = self.objects.get_bytes(f"mlflow_runs/{self.run_id}") if self.objects is not None else None
        except StoreError as error:
            self.notes.append(f"the MLflow run is not known: {error}")
            return None
        return data.decode(errors="replace") if data is not None else None

    def task(self, node: str) -> Any:
        """Return Kubeflow's details of a node's task, a `V2beta1PipelineTaskDetail`; None before it is scheduled."""
        return self.details.get(task_name(node))

    def tries(self, node: str) -> list[Try]:
        """Return the tries of a node in this run, oldest first."""
        key = key_of(self.tasks[node], self.run_id)
        if key is None or self.objects is None:
            return []
        try:
            found = tries_of(self.objects, stage_of(node), key)
        except StoreError as error:
            self.notes.append(f"the tries of {node} are not known: {error}")
            return []
        # Runs with the same settings share the result and the records of its tries.
        return [one for one in found if one.pipeline_run == self.run_id]

    def last_pod(self, node: str) -> Any:
        """Return the pod of a node's last try; None if there is none, or it is gone."""
        own = [pod for pod in self.pods if pod.metadata.labels[STAGE_LABEL] == node]
        return own[-1] if own else None

    def why_waiting(self, pod: Any) -> str | None:
        """Return what a pod waits for: Kueue's message if Kueue holds it back."""
        return self.queued(pod.metadata.uid) or why_pending(pod)

    def queued(self, uid: str) -> str | None:
        """Return why Kueue has not admitted a pod or job; None if that is not known."""
        try:
            return self.kubernetes.why_queued(uid) if self.kubernetes is not None else None
        except KubernetesError as error:
            self.notes.append(f"Kueue's queue is not looked at: {error}")
            return None

    @cached_property
    def jobs(self) -> Mapping[str, Job]:
        """The existing TrainJobs, by the node that created them."""
        found = {}
        try:
            for node in self.tasks:
                if self.kubernetes is not None and may_be_a_job(node):
                    name = f"ngrpo-{key_of(self.tasks[node], self.run_id)}"
                    job = self.kubernetes.get(f"{TRAINER}/namespaces/{namespace()}/trainjobs/{name}")
                    if job is not None:
                        found[node] = Job(job["metadata"]["uid"], self.kubernetes.pods_of_job(name))
        except KubernetesError as error:
            self.notes.append(f"jobs are not looked at: {error}")
        return found

    def job_waits(self, node: str) -> str | None:
        """Return what the job of a node waits for; None if it is running or there is none."""
        job = self.jobs.get(node)
        if job is None:
            return None
        reasons = (why_pending(pod) for pod in job.pods)
        return self.queued(job.uid) or next((reason for reason in reasons if reason is not None), None)


def _started(task: Any) -> float:
    return float(task.start_time.timestamp()) if task.start_time is not None else 0.0
