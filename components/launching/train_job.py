"""A stage on several nodes: a Kubeflow Trainer `TrainJob`, created and watched by the stage's step; its pods do the work together.

The job's pods run `execute` as a step on one node does, each with torchrun over all of them, and the first publishes the artifact, which
the step then finds in the store. A step deletes its job when it ends. A killed step may not get that far, because Argo gives it only a
second. Therefore the job has the stage's key in its name, so that the next try joins it; it is owned by the step's Workflow, so that
Kubernetes deletes the two together; and it has a deadline.

The job is read, watched and deleted through Kubeflow's SDK, but not created by its `TrainerClient.train`: kubeflow 0.5 accepts environment
variables there only as plain text, not as references to secrets, and the cluster refuses variables of the container `node` elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ngrpo.config.cluster import TRAINING_TOKEN, ClusterConfig
from ngrpo.errors import Preempted, TrainJobError
from ngrpo.stages.task import Task
from ngrpo_kfp.components.launching.pending_pods import why_pending
from ngrpo_kfp.components.launching.train_job_manifest import NODE, JobSettings, Step, manifest

if TYPE_CHECKING:
    from kubeflow.common.types import KubernetesBackendConfig

POLL_SECONDS = 10.0
"""Seconds between requests for the job's state."""
PATIENCE_SECONDS = 300.0
"""Seconds for which the cluster may be out of reach."""
_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer
_LOG_SECONDS = 30.0  # to read what the log holds once the job has ended
_LAST_LINES = 5
_POD_NAME = "KFP_POD_NAME"  # environment variables of a step, set by Kubeflow
_POD_UID = "KFP_POD_UID"
_MAIN = "main"  # name that Argo gives to the container of a step
_JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"  # of the pods: the name of the TrainJob
_PASSING = (0, 429, 500, 502, 503, 504)  # statuses; 0 is the client's for a broken TLS connection
_CURES = {
    401: "the token is not accepted: see cluster.training_token and cluster.service_account",
    403: "the account lacks rights: apply k8s/overlays/gpu, and name its secret ngrpo-training-token in cluster.training_token",
    404: "install Kubeflow Trainer 2.3, apply k8s/overlays/gpu, and name a runtime that is there in cluster.training_runtime",
}


def run(task: Task, settings_json: str) -> None:
    """Run a stage as a job, wait until the job and its log end, and delete the job.

    Args:
        task: What the nodes execute.
        settings_json: `JobSettings` as JSON.

    Raises:
        TrainJobError: The cluster refused the job or cannot be reached, or the job did not start in time or failed.
        Preempted: SIGTERM arrived. The job is deleted if this process lives long enough; its nodes have their own grace period to save.
    """
    settings = JobSettings.model_validate_json(settings_json)

    def stop(number: int, frame: FrameType | None) -> None:
        # It is often sent twice, and must not interrupt the deletion of the job.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Preempted

    job = TrainJob(f"ngrpo-{task.key}", settings.cluster)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        job.start(manifest(job.name, task, settings, job.step()))
        job.follow()
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            job.delete()
        except TrainJobError as failure:
            error.add_note(f"TrainJob {job.name} may be left on the cluster: {failure}")
        raise
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        job.delete()
    finally:
        signal.signal(signal.SIGTERM, before)


class TrainJob:
    """A job on the cluster."""

    def __init__(self, name: str, cluster: ClusterConfig):
        """Name a job; nothing is created yet.

        Raises:
            TrainJobError: This process cannot reach a cluster.
        """
        from kubeflow.trainer import TrainerClient
        from kubernetes.config import ConfigException

        self.name = name
        self._nodes = cluster.nodes
        self._runtime = cluster.training_runtime
        self._minutes = cluster.nodes_start_minutes
        self._ended = threading.Event()
        self._said: str | None = None
        self._start_by = time.monotonic() + 60 * self._minutes
        try:
            self._client = TrainerClient(_account(cluster))
        except ConfigException as error:
            raise TrainJobError(
                f"cluster.nodes={self._nodes}: this process has no way to the API of Kubernetes ({error}): run it in a pod"
            ) from error

    def step(self) -> Step:
        """Return the facts of this step's pod from Kubernetes; if they cannot be read, print that and return an empty `Step`."""
        try:
            return self._read_step()
        except TrainJobError as error:
            print(
                f"TrainJob {self.name}: the pod of this step is not known, so the job does not end with its run if this step is killed, "
                f"only at its deadline, and its nodes get no credentials of Kubeflow's MLflow plugin: {error}",
                file=sys.stderr,
                flush=True,
            )
            return Step()

    def _read_step(self) -> Step:
        name, backend = os.environ.get(_POD_NAME), self._client.backend
        if not name:
            raise TrainJobError(f"{_POD_NAME} is not set: this is no step of Kubeflow Pipelines")
        read = {"name": name, "namespace": backend.namespace, "_request_timeout": _TIMEOUT}
        pod = self._ask(f"pod {name}", lambda: backend.core_api.read_namespaced_pod(**read))
        owners = [one for one in pod.metadata.owner_references or () if one.kind == "Workflow"]
        if pod.metadata.uid != os.environ.get(_POD_UID) or not owners:
            raise TrainJobError(
                f"pod {name} of namespace {backend.namespace} is not the pod of this step, or no Workflow owns it"
            )
        owner = owners[0]
        variables = [one for container in pod.spec.containers if container.name == _MAIN for one in container.env or ()]
        places = {one.name: one.value_from.secret_key_ref for one in variables if one.value_from is not None}
        return Step(
            owner={"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid},
            secrets={
                name: {"name": place.name, "key": place.key} for name, place in places.items() if place is not None
            },
        )

    def start(self, job: dict[str, Any]) -> None:
        """Create the job, or join one that an earlier try left running. An earlier job that has ended is deleted first.

        Raises:
            TrainJobError: The cluster refuses or cannot be reached, or the earlier job is not gone in time.
        """
        runtime = self._ask(f"runtime {self._runtime}", lambda: self._client.get_runtime(self._runtime))
        job["spec"]["runtimeRef"]["kind"] = runtime.kind.value
        while time.monotonic() < self._start_by:
            found = self._get()
            if found is None:
                if self._call("create", body=job, unless=409) is not None:
                    print(f"TrainJob {self.name}: made, {self._nodes} nodes", flush=True)
                    return
            elif "deletionTimestamp" not in found["metadata"]:
                if _end(found) is None:
                    print(f"TrainJob {self.name}: it is there, an earlier try has made it", flush=True)
                    return
                self.delete()
            time.sleep(POLL_SECONDS)
        raise TrainJobError(
            f"TrainJob {self.name}: an earlier one is not gone after {self._minutes} minutes: delete it"
        )

    def follow(self) -> None:
        """Print the log of the first node until the job is complete.

        Raises:
            TrainJobError: It failed, was deleted, did not start in time, or the cluster cannot be reached.
        """
        log = threading.Thread(target=self._print_log, name="log", daemon=True)
        log.start()
        try:
            end = self._wait()
        finally:
            self._ended.set()
        log.join(_LOG_SECONDS)
        if end["type"] == "Failed":
            said = f"{end.get('reason', 'Failed')}: {end.get('message', '')}".rstrip(": ")
            raise TrainJobError(f"TrainJob {self.name} failed ({said}); {self._last_words()}")

    def delete(self) -> None:
        """Delete the job, if it exists, and wait for the end of its pods: they may be saving, and two jobs must not save at once.

        Raises:
            TrainJobError: The cluster refuses or cannot be reached.
        """
        self._call("delete", name=self.name, propagation_policy="Foreground", unless=404)

    def _wait(self) -> Mapping[str, Any]:
        """Wait for the end of the job, and return its final condition."""
        running = False
        while True:
            job = self._get()
            if job is None:
                raise TrainJobError(f"TrainJob {self.name} was deleted by somebody else: run the stage again")
            end = _end(job)
            if end is not None:
                return end
            running = running or self._runs()
            time.sleep(POLL_SECONDS)

    def _runs(self) -> bool:
        """Whether all nodes have started; raises when they take too long."""
        job = self._ask("its pods", lambda: self._client.get_job(self.name), unless=404)
        states = {step.name: step.status for step in job.steps} if job is not None else {}
        if len(states) >= self._nodes and "Pending" not in states.values():
            return True
        why = self._why_pending()
        if why is not None and why != self._said:
            print(f"TrainJob {self.name}: {why}", flush=True)
            self._said = why
        if time.monotonic() > self._start_by:
            pods = ", ".join(f"{name} {state}" for name, state in sorted(states.items())) or "no pod was made"
            cure = why or "free GPUs, raise the queue's quota, or allow more minutes"
            raise TrainJobError(
                f"TrainJob {self.name} did not start on {self._nodes} nodes within cluster.nodes_start_minutes={self._minutes} "
                f"({pods}): {cure}"
            )
        return False

    def _why_pending(self) -> str | None:
        """Return why one of the pods has not started; None if Kubernetes gives no reason."""
        backend = self._client.backend
        ours = {
            "namespace": backend.namespace,
            "label_selector": f"{_JOB_LABEL}={self.name}",
            "_request_timeout": _TIMEOUT,
        }
        pods = self._ask("its pods", lambda: backend.core_api.list_namespaced_pod(**ours).items)
        reasons = ((pod.metadata.name, why_pending(pod)) for pod in pods)
        return next((f"{name}: {reason}" for name, reason in reasons if reason is not None), None)

    def _print_log(self) -> None:
        """Print the log of the first node; after a lost connection, continue after the last line."""
        printed, last = 0, False
        while not last:
            last = self._ended.is_set()  # read once more after the end, for the last lines
            try:
                for line in islice(self._client.get_job_logs(self.name, follow=True), printed, None):
                    print(line, flush=True)
                    printed += 1
            except (RuntimeError, TimeoutError) as error:
                # `_wait`, which asks for the job itself, decides whether this matters.
                print(f"TrainJob {self.name}: no log for now ({error})", file=sys.stderr, flush=True)
            self._ended.wait(POLL_SECONDS)

    def _last_words(self) -> str:
        """Return the last log lines of a failed node, or of the first node if none is known to have failed."""
        try:
            failed = [step.name for step in self._client.get_job(self.name).steps if step.status == "Failed"]
            node = min(failed, default=f"{NODE}-0")
            lines = deque(self._client.get_job_logs(self.name, step=node), maxlen=_LAST_LINES)
        except (RuntimeError, TimeoutError) as error:
            return f"what its nodes said last cannot be had: {error}"
        return f"last lines of {node}: " + " / ".join(line.strip() for line in lines if line.strip())

    def _get(self) -> dict[str, Any] | None:
        job: dict[str, Any] | None = self._call("get", name=self.name, unless=404)
        return job

    def _call(self, verb: str, *, unless: int, **arguments: Any) -> Any:
        """Call the API for the job; returns None if the cluster answers with the status `unless`."""
        backend = self._client.backend
        function = getattr(backend.custom_api, f"{verb}_namespaced_custom_object")
        kind = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
        fixed = {**kind, "namespace": backend.namespace, "_request_timeout": _TIMEOUT}
        return self._ask(f"{verb} it", lambda: function(**fixed, **arguments), unless)

    def _ask(self, what: str, call: Callable[[], Any], unless: int | None = None) -> Any:
        """Call the cluster's API; transient failures, a server's error or no answer, are retried.

        Args:
            what: Purpose of the call, for the error.
            call: Makes the call.
            unless: An error status for which None is returned.

        Raises:
            TrainJobError: The cluster refuses, or is out of reach for too long.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (ApiException, HTTPError, RuntimeError, TimeoutError) as error:
                # The SDK wraps the client's error.
                cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
                status = getattr(cause, "status", None)
                if status is not None and status == unless:
                    return None
                passing = isinstance(cause, HTTPError | TimeoutError) or status in _PASSING
                if not passing or time.monotonic() > give_up:
                    raise TrainJobError(f"TrainJob {self.name}: {what}: {_refusal(cause, status)}") from error
            time.sleep(POLL_SECONDS)


def _account(cluster: ClusterConfig) -> KubernetesBackendConfig | None:
    """Return the client configuration of the account that may create jobs; None to use the account of this process.

    Raises:
        ConfigException: Its token is missing.
    """
    if cluster.training_token is None:
        return None
    from kubeflow.common.types import KubernetesBackendConfig
    from kubernetes.client import Configuration
    from kubernetes.config.incluster_config import InClusterConfigLoader

    folder, configuration = Path(TRAINING_TOKEN), Configuration()
    InClusterConfigLoader(str(folder / "token"), str(folder / "ca.crt")).load_and_set(configuration)
    return KubernetesBackendConfig(
        client_configuration=configuration, namespace=(folder / "namespace").read_text(encoding="utf-8")
    )


def _end(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the final condition of a job; None if it has not ended."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"), None)


def _refusal(error: BaseException, status: int | None) -> str:
    """Describe the cluster's answer, and what to do."""
    if status is None:
        return f"Kubernetes gives no answer that can be used ({error}): try again"
    try:
        message = json.loads(getattr(error, "body", None) or "{}").get("message", "")
    except ValueError:  # a proxy's page
        message = ""
    cure = _CURES.get(status, "try again" if status in _PASSING else "correct the section `cluster`")
    return f"Kubernetes answers with {status} {message}".rstrip() + f": {cure}"
