"""Follow runs on a cluster: to their end, or until they have started."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape

from ngrpo.errors import ClusterError
from ngrpo.report.phases import phase
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import connect, explained
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.kubeflow.runs.status import RunView, look

_PAUSE_SECONDS = 15.0
_PATIENCE_SECONDS = 3600.0
"""Seconds for which the API may be out of reach while a run is followed."""
_START_PATIENCE = {"a pod": 1800.0, "a place": 60.0, "its first container": 1800.0}
"""Seconds to wait for a start, by what is missing. A free node is found at once, pulling a large image takes minutes, and after ten minutes
an image is known to be impossible to pull."""


def follow(run_id: str, console: Console, *, pause_seconds: float = _PAUSE_SECONDS) -> bool:
    """Follow a run to its end, and print changes; returns whether it succeeded.

    A run with an image that cannot be pulled is ended, because Kubeflow would wait for its pod until the pod's deadline.

    Args:
        run_id: The run.
        console: Where changes are printed. The reasons of a failure go to standard error.
        pause_seconds: Time between two requests.

    Raises:
        ClusterError: There is no such run, or Kubeflow was out of reach for an hour.
    """
    run = _Followed(run_id, console, pause_seconds)
    with _left_alone(run_id, console), phase(console, f"following run {run_id}") as shown:
        while True:
            view = run.look()
            outcome = run.outcome(view)
            if outcome is not None:
                return outcome
            shown.now(_so_far(view))
            time.sleep(pause_seconds)


def follow_start(run_id: str, console: Console, *, pause_seconds: float = _PAUSE_SECONDS) -> bool:
    """Follow a run until the container of a stage is running or its pods are queued; returns false if it ended without success.

    An image that cannot be pulled is known by then, and ends the run (see `follow`). If pods cannot be read, that is reported, and the
    function does not wait.

    Args:
        run_id: The run.
        console: Where changes are said.
        pause_seconds: Time between two looks.

    Raises:
        ClusterError: There is no such run, or Kubeflow was out of reach for an hour.
    """
    run = _Followed(run_id, console, pause_seconds)
    missing, since = "a pod", time.monotonic()
    with _left_alone(run_id, console), phase(console, f"waiting until run {run_id} starts"):
        while True:
            try:
                pods = Kubernetes().pods(run_id)
            except KubernetesError as error:
                run.say(f"is not followed, because its pods cannot be read: {error}; `ngrpo status {run_id}`")
                return True
            outcome = run.outcome(run.look())
            if outcome is not None:
                return outcome
            now_missing = _missing(pods)
            if now_missing is None:
                run.say(f"has started: `ngrpo status {run_id}`")
                return True
            if now_missing != missing:
                missing, since = now_missing, time.monotonic()
            elif time.monotonic() - since >= _START_PATIENCE[missing]:
                run.say(f"waits for {missing}, and goes on by itself: `ngrpo status {run_id}`, `ngrpo cancel {run_id}`")
                return True
            time.sleep(pause_seconds)


class _Followed:
    """A followed run: what was printed about it, and when Kubeflow last answered."""

    def __init__(self, run_id: str, console: Console, pause_seconds: float):
        self._client = connect()
        self._run_id, self._console, self._pause_seconds = run_id, console, pause_seconds
        self._said: dict[str, str] = {}
        self._heard = time.monotonic()

    def look(self) -> RunView:
        """Return the state of the run, and print what has changed since the last call.

        Raises:
            ClusterError: There is no such run, or Kubeflow was out of reach for an hour.
        """
        while True:
            try:
                view = look(self._client, self._run_id)
            except ClusterError as error:
                if time.monotonic() - self._heard > _PATIENCE_SECONDS:
                    raise
                self._tell("no news", str(error))
                time.sleep(self._pause_seconds)
                continue
            self._heard = time.monotonic()
            for stage in view.stages:
                why = f": {stage.why}" if stage.why else ""
                self._tell(stage.stage, f"{stage.state}{why}")
            return view

    def outcome(self, view: RunView) -> bool | None:
        """Return whether the run has succeeded; None while it goes on. A run that can never succeed is ended."""
        if view.stuck is not None:
            with explained(f"run {self._run_id}"):
                self._client.terminate_run(self._run_id)
            print(harmless(f"run {self._run_id} is ended: {view.stuck}"), file=sys.stderr)
            return False
        if not view.over:
            return None
        if view.state == "succeeded":
            self.say("succeeded")
            return True
        for reason in _reasons(view):
            print(harmless(f"run {self._run_id} {view.state}: {reason}"), file=sys.stderr)
        return False

    def say(self, what: str) -> None:
        """Print a line about the run."""
        self._console.print(escape(harmless(f"run  {self._run_id} {what}")), soft_wrap=True)

    def _tell(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            self._said[what] = text
            line = f"{datetime.now():%H:%M:%S}  {what}  {text}"
            self._console.print(escape(harmless(line)), soft_wrap=True)


@contextmanager
def _left_alone(run_id: str, console: Console) -> Iterator[None]:
    """If the user interrupts the command, print that the run goes on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"run  {run_id} goes on: `ngrpo status {run_id}`, `ngrpo cancel {run_id}`", soft_wrap=True)
        raise


def _so_far(view: RunView) -> str:
    """Return how far a run is: how many stages have ended, and which are running for how long."""
    ended = sum(stage.state not in ("waiting", "running") for stage in view.stages)
    running = [f"{stage.stage} is running {stage.time}".rstrip() for stage in view.stages if stage.state == "running"]
    return ", ".join([f"following run {view.run_id}: {ended} of {len(view.stages)} stages have ended", *running])


def _reasons(view: RunView) -> Iterable[str]:
    """Return why a run did not succeed: the reasons of its stages, or of the run."""
    reasons = [f"{stage.stage}: {stage.why}" for stage in view.stages if stage.state == "failed"]
    return reasons or [view.why or "it was cancelled"]


def _missing(pods: Iterable[Any]) -> str | None:
    """Return what a run with these pods, `V1Pod`, still needs to start; None if a container is running or has run."""
    pods = list(pods)
    if any(pod.status.phase != "Pending" for pod in pods):
        return None
    if not pods:
        return "a pod"
    return "its first container" if any(map(_has_node, pods)) else "a place"


def _has_node(pod: Any) -> bool:
    """Whether a pod, a `V1Pod`, has been assigned to a node."""
    return any(each.type == "PodScheduled" and each.status == "True" for each in pod.status.conditions or ())
