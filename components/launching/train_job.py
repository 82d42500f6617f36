"""A stage on several nodes: a `TrainJob` of Kubeflow Trainer, made and followed by the stage's step, whose pods do the work together.

The job's pods run `execute` as a step on one node does, each with torchrun over all of them, and the first publishes the artifact. The
step finds it in the store. However a step ends, it deletes its job. One that is killed may not get that far: Argo gives it a second. So a
job has the stage's key in its name, for the next try to join it; it belongs to the Workflow of the step, with which Kubernetes deletes it;
and it has a deadline.

The job is read, watched and deleted through Kubeflow's SDK, but not made by its `TrainerClient.train`: kubeflow 0.5 takes only plain texts
there as environment variables, no references to secrets, and the cluster refuses variables of the container `node` anywhere else.
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
"""How often the cluster is asked how the job is."""
PATIENCE_SECONDS = 300.0
"""How long the cluster may be out of reach."""
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
    """Run a stage as a job and wait for its end, which is also that of the job's log; the job is then deleted.

    Args:
        task: What the nodes execute.
        settings_json: `JobSettings`.

    Raises:
        TrainJobError: The cluster refused the job or cannot be reached, or the job did not start in time or failed.
        Preempted: SIGTERM arrived. The job is deleted if this process lives long enough; its nodes have their own grace, and save.
    """
    settings = JobSettings.model_validate_json(settings_json)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is often sent twice, and the job is to be deleted
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
        """Name a job; nothing is made yet.

        Raises:
            TrainJobError: This process has no way to a cluster.
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
        """Return what Kubernetes knows of the pod of this step; if that is not to be had, a line says so, and nothing is known."""
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
        """Make the job, or join the one that an earlier try has left running. What is left of one that ended makes room.

        Raises:
            TrainJobError: The cluster refuses it or cannot be reached, or the earlier one does not go away.
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
        """Delete the job, if it is there. It is gone once its pods are: they may be saving, and two jobs must not save at once.

        Raises:
            TrainJobError: The cluster refuses or cannot be reached.
        """
        self._call("delete", name=self.name, propagation_policy="Foreground", unless=404)

    def _wait(self) -> Mapping[str, Any]:
        """Return the condition with which the job ends."""
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
        """Tell whether all nodes have been started; refuse to wait for ever."""
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
        """Return why one of the pods has not started, none if Kubernetes gives no reason."""
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
        """Print what the first node says, line by line; where the connection breaks, go on after the last line."""
        printed, last = 0, False
        while not last:
            last = self._ended.is_set()  # once more then, for what was said since the last time
            try:
                for line in islice(self._client.get_job_logs(self.name, follow=True), printed, None):
                    print(line, flush=True)
                    printed += 1
            except (RuntimeError, TimeoutError) as error:
                # Whether this matters `_wait` finds out: it asks for the job itself.
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
        """Do something to the job; returns none where the cluster answers with the status `unless`."""
        backend = self._client.backend
        function = getattr(backend.custom_api, f"{verb}_namespaced_custom_object")
        kind = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
        fixed = {**kind, "namespace": backend.namespace, "_request_timeout": _TIMEOUT}
        return self._ask(f"{verb} it", lambda: function(**fixed, **arguments), unless)

    def _ask(self, what: str, call: Callable[[], Any], unless: int | None = None) -> Any:
        """Ask the cluster; what may pass, a server's error or no answer, is tried again.

        Args:
            what: What for.
            call: Asks.
            unless: A status that is an answer too: none.

        Raises:
            TrainJobError: The cluster refuses, or was out of reach for too long.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (ApiException, HTTPError, RuntimeError, TimeoutError) as error:
                cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # the SDK's
                status = getattr(cause, "status", None)
                if status is not None and status == unless:
                    return None
                passing = isinstance(cause, HTTPError | TimeoutError) or status in _PASSING
                if not passing or time.monotonic() > give_up:
                    raise TrainJobError(f"TrainJob {self.name}: {what}: {_refusal(cause, status)}") from error
            time.sleep(POLL_SECONDS)


def _account(cluster: ClusterConfig) -> KubernetesBackendConfig | None:
    """Return how the cluster is asked as the account that may make jobs; none for the account of this process.

    Raises:
        ConfigException: Its token is not there.
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
    """Return the condition with which a job ended, none if it has not."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"), None)


def _refusal(error: BaseException, status: int | None) -> str:
    """Say what the cluster answered, and what to do."""
    if status is None:
        return f"Kubernetes gives no answer that can be used ({error}): try again"
    try:
        message = json.loads(getattr(error, "body", None) or "{}").get("message", "")
    except ValueError:  # a proxy's page
        message = ""
    cure = _CURES.get(status, "try again" if status in _PASSING else "correct the section `cluster`")
    return f"Kubernetes answers with {status} {message}".rstrip() + f": {cure}"
