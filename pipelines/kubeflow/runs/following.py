"""Runs on a cluster that somebody waits for: followed to their end, or until they have started."""

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
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import connect, explained
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.kubeflow.runs.status import RunView, look

_PAUSE_SECONDS = 15.0
_PATIENCE_SECONDS = 3600.0
"""How long the API may be out of reach while a run is followed."""
_START_PATIENCE = {"a pod": 1800.0, "a place": 60.0, "its first container": 1800.0}
"""Seconds that a start is waited for by what is missing. A free place is found at once, a large image takes minutes to be pulled, and
that one cannot be pulled is known after ten."""


def follow(run_id: str, console: Console, *, pause_seconds: float = _PAUSE_SECONDS) -> bool:
    """Follow a run to its end, and say what changes; returns whether it succeeded.

    A run whose image cannot be pulled is ended: Kubeflow would wait for its pod until that pod's time is over.

    Args:
        run_id: The run.
        console: Where changes are said. Why a run failed is said on standard error.
        pause_seconds: Time between two looks.

    Raises:
        ClusterError: There is no such run, or Kubeflow was out of reach for an hour.
    """
    run = _Followed(run_id, console, pause_seconds)
    with _left_alone(run_id, console):
        while (outcome := run.outcome(run.look())) is None:
            time.sleep(pause_seconds)
    return outcome


def follow_start(run_id: str, console: Console, *, pause_seconds: float = _PAUSE_SECONDS) -> bool:
    """Follow a run until the container of a stage runs or its pods wait for a place; returns false if it is over and did not succeed.

    What cannot be pulled is known by then, and ends the run (see `follow`). Where pods cannot be looked at, that is said and nothing is
    waited for.

    Args:
        run_id: The run.
        console: Where changes are said.
        pause_seconds: Time between two looks.

    Raises:
        ClusterError: There is no such run, or Kubeflow was out of reach for an hour.
    """
    run = _Followed(run_id, console, pause_seconds)
    missing, since = "a pod", time.monotonic()
    with _left_alone(run_id, console):
        while True:
            try:
                pods = Kubernetes().pods(run_id)
            except KubernetesError as error:
                run.say(f"is not followed, for its pods cannot be looked at: {error}; `ngrpo status {run_id}`")
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
    """A run that is followed: what was said of it, and when Kubeflow was last heard of."""

    def __init__(self, run_id: str, console: Console, pause_seconds: float):
        self._client = connect()
        self._run_id, self._console, self._pause_seconds = run_id, console, pause_seconds
        self._said: dict[str, str] = {}
        self._heard = time.monotonic()

    def look(self) -> RunView:
        """Return how far the run is, and say what has changed since the last look.

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
        """Return whether the run has succeeded, none while it goes on; it is ended if it never can."""
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
        """Say something of the run."""
        self._console.print(escape(harmless(f"run  {self._run_id} {what}")), soft_wrap=True)

    def _tell(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            self._said[what] = text
            line = f"{datetime.now():%H:%M:%S}  {what}  {text}"
            self._console.print(escape(harmless(line)), soft_wrap=True)


@contextmanager
def _left_alone(run_id: str, console: Console) -> Iterator[None]:
    """Say that a run goes on if who follows it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"run  {run_id} goes on: `ngrpo status {run_id}`, `ngrpo cancel {run_id}`", soft_wrap=True)
        raise


def _reasons(view: RunView) -> Iterable[str]:
    """Return why a run did not succeed: what its stages say, or what is known of the run."""
    reasons = [f"{stage.stage}: {stage.why}" for stage in view.stages if stage.state == "failed"]
    return reasons or [view.why or "it was cancelled"]


def _missing(pods: Iterable[Any]) -> str | None:
    """Return what is missing to the start of a run with these pods, `V1Pod`; none if a container runs or has run."""
    pods = list(pods)
    if any(pod.status.phase != "Pending" for pod in pods):
        return None
    if not pods:
        return "a pod"
    return "its first container" if any(map(_has_node, pods)) else "a place"


def _has_node(pod: Any) -> bool:
    """Say whether a pod, a `V1Pod`, has got its node."""
    return any(each.type == "PodScheduled" and each.status == "True" for each in pod.status.conditions or ())
