"""Logs of the nodes of a run on a cluster: every try, from its pod or, after the pod is gone, from the store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kfp import Client
from rich.console import Console

from ngrpo.errors import ClusterError, NGRPOError
from ngrpo.stages.tries import Try, begin_line, log_of, own_lines, tries_of
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.components.launching.pending_pods import why_pending
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import OVER, connect, namespace
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import submitted_by
from ngrpo_kfp.pipelines.kubeflow.submission import recorded_config
from ngrpo_kfp.pipelines.kubeflow.submitted_runs import find_run, key_of, tasks_of
from ngrpo_kfp.pipelines.planning.nodes import find_node, of_stage, stage_of, task_name

_STORE_PATIENCE = 5.0
_PAUSE_SECONDS = 5.0


def show_logs(
    run_id: str | None,
    node: str,
    console: Console,
    *,
    raw: bool = False,
    follow: bool = False,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Print the logs of a node, each try under a title.

    Logs of tries are stored beside the artifacts. The last one is read from its pod, if it exists, because the stored log may be a minute
    old.

    Args:
        run_id: The run; None for the newest.
        node: Name of the node, or of a stage with one node only.
        console: Where it is printed.
        raw: Print the whole logs of its pods, including Kubeflow's launcher.
        follow: Continue until the node has ended.
        pause_seconds: Time between two requests for the next pod of a followed node.

    Raises:
        ConfigError: Several nodes of the run have that stage.
        ClusterError: There is no such run, the node has printed nothing, or its logs cannot be read.
    """
    client = connect()
    logs = _Logs(client, find_run(client, run_id), node)
    if follow:
        logs.follow(console, raw, pause_seconds)
    elif raw:
        logs.show_pods(console)
    else:
        logs.show(console)


class _Logs:
    """The logs of a node of a run."""

    def __init__(self, client: Client, run: Any, name: str):
        """Find out where they are.

        Raises:
            ConfigError: Several of its tasks run the stage of that name.
            ClusterError: The run has no such task.
        """
        self._client, self._run_id = client, str(run.run_id)
        tasks = tasks_of(client, self._run_id)
        if name not in tasks and not of_stage(name, tasks):
            days = [f"`ngrpo logs {name} {other.run_id}`" for other in submitted_by(client, self._run_id)]
            hint = f"; of its run of the day: {', '.join(days)}" if days else ": it was cached"
            raise ClusterError(f"run {self._run_id} has no task {name}{hint}")
        self._node = find_node(name, tasks)
        self._key = key_of(tasks[self._node], self._run_id)
        self._unknown: list[str] = []
        self._kubernetes, self._pods = self._look_for_pods()
        self._objects, self._tries = self._look_for_tries()

    def show(self, console: Console) -> None:
        """Print the log of every try.

        Raises:
            ClusterError: There is none.
        """
        if not self._tries:
            self.show_pods(console, raw=False)
            return
        for attempt in self._tries:
            _head(console, _title(attempt))
            _print(console, self._lines(attempt))

    def show_pods(self, console: Console, *, raw: bool = True) -> None:
        """Print the logs of the pods, one after the other.

        Raises:
            ClusterError: There is no pod, or none has started.
        """
        started = [pod for pod in self._pods if pod.status.phase != "Pending"]
        if self._kubernetes is None or not started:
            raise ClusterError(f"run {self._run_id}: {self._why_nothing()}")
        for reason in self._unknown:
            _head(console, f"stored logs of earlier tries cannot be read: {reason}")
        for pod in started:
            _head(console, f"pod {pod.metadata.name}: {pod.status.phase.lower()}")
            lines = self._kubernetes.log_lines(pod.metadata.name)
            _print(console, lines if raw else own_lines(lines))

    def follow(self, console: Console, raw: bool, pause_seconds: float) -> None:
        """Print the logs of the pods until the node has ended; logs of pods that are gone are read from the store.

        Raises:
            ClusterError: Kubernetes cannot be reached, or the run has ended and there is no pod.
        """
        kubernetes = self._kubernetes
        if kubernetes is None:
            raise ClusterError(f"run {self._run_id}: {self._why_nothing()}")
        for attempt in self._tries if not raw else ():
            if self._pod_of(attempt) is None:
                _head(console, _title(attempt))
                _print(console, self._lines(attempt))
        printed: set[str] = set()
        said = None
        while True:
            over = self._is_over()  # before the log is read, so that its last lines are not missed
            for pod in kubernetes.pods(self._run_id, self._node):
                if pod.status.phase == "Pending":
                    why = why_pending(pod) or "it is being started"
                    if why != said:
                        _head(console, f"pod {pod.metadata.name} waits: {why}")
                    said = why
                elif pod.metadata.name not in printed:
                    printed.add(pod.metadata.name)
                    _head(console, f"pod {pod.metadata.name}")
                    lines = kubernetes.log_lines(pod.metadata.name, follow=True)
                    _print(console, lines if raw else own_lines(lines))
            if over:
                break
            time.sleep(pause_seconds)
        if not printed and not self._tries:
            raise ClusterError(f"run {self._run_id}: {self._why_nothing()}")

    def _is_over(self) -> bool:
        """Whether the node, or the whole run, has ended."""
        run = find_run(self._client, self._run_id)
        tasks = (run.run_details.task_details if run.run_details else None) or ()
        ended = [task.display_name for task in tasks if task.state in OVER]
        return run.state in OVER or task_name(self._node) in ended

    def _lines(self, attempt: Try) -> Iterable[str]:
        """Return the log lines of a try; those of a running try come from its pod."""
        pod = self._pod_of(attempt)
        if attempt.outcome == "running" and pod is not None and self._kubernetes is not None:
            return own_lines(_since(begin_line(attempt), self._kubernetes.log_lines(pod.metadata.name)))
        return log_of(self._objects, attempt).splitlines() if self._objects is not None else ()

    def _pod_of(self, attempt: Try) -> Any:
        """Return the pod of a try; None if it is gone."""
        # A try records its pod's host name, which Kubernetes truncates to 63 characters.
        return next((pod for pod in reversed(self._pods) if pod.metadata.name.startswith(attempt.pod)), None)

    def _look_for_pods(self) -> tuple[Kubernetes | None, Sequence[Any]]:
        try:
            kubernetes = Kubernetes()
            return kubernetes, kubernetes.pods(self._run_id, self._node)
        except KubernetesError as error:
            self._unknown.append(str(error))
            return None, ()

    def _look_for_tries(self) -> tuple[ObjectStore | None, Sequence[Try]]:
        if self._key is None:
            return None, ()
        try:
            store = recorded_config(self._client, self._run_id).cluster.store
            objects = ObjectStore(store, patience=_STORE_PATIENCE)
            tries = tries_of(objects, stage_of(self._node), self._key)
        except NGRPOError as error:
            self._unknown.append(str(error))
            return None, ()
        return objects, [one for one in tries if one.pipeline_run == self._run_id]

    def _why_nothing(self) -> str:
        """Return why there is nothing to print."""
        if self._pods:
            why = why_pending(self._pods[-1]) or "it is being started"
            return f"the pod of {self._node} has not started: {why}"
        if self._unknown:
            return f"the logs of {self._node} cannot be read: {'; '.join(self._unknown)}"
        kept = " (without --raw its stored logs are printed)" if self._tries else ""
        return f"no pod of {self._node} in namespace {namespace()}: it has not started, or was deleted{kept}"


def _since(first: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines from the last occurrence of a line on."""
    found: list[str] = []
    for line in lines:
        if line == first:
            found.clear()
        if found or line == first:
            found.append(line)
    yield from found


def _title(attempt: Try) -> str:
    took = f" after {attempt.seconds:.0f} s" if attempt.seconds is not None else ""
    why = f": {attempt.error}" if attempt.error else ""
    return f"try {attempt.number} of {attempt.of}, pod {attempt.pod}: {attempt.outcome}{took}{why}"


def _head(console: Console, title: str) -> None:
    print(f"--- {harmless(title)}", file=console.file, flush=True)


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        print(harmless(line), file=console.file, flush=True)  # not through rich, which would expand tabs
