"""Detect images that cannot be pulled. Kubernetes would retry, and Kubeflow would wait, until the pod's deadline."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from ngrpo.config.cluster import STAGE_LABEL
from ngrpo_kfp.components.launching.pending_pods import image_wait
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

PATIENCE = timedelta(minutes=10)
"""How long an image may fail to be pulled: restarts of a registry and pull limits may last minutes."""


def unpullable(run_id: str) -> str | None:
    """Return which image of a run cannot be pulled, as one line with the cure; None if there is none, or it is too early to tell.

    Args:
        run_id: The run; its pods that have waited for their image for `PATIENCE` count.

    Raises:
        KubernetesError: Kubernetes cannot be reached.
    """
    return never_pulled(Kubernetes().pods(run_id))


def never_pulled(pods: Iterable[Any]) -> str | None:
    """Return which image of these pods, `V1Pod`, cannot be pulled; see `unpullable`."""
    for pod in pods:
        waits = image_wait(pod)
        if waits is not None and datetime.now(UTC) - _placed(pod) >= PATIENCE:
            node = pod.metadata.labels[STAGE_LABEL]
            return f"the image of {node} could not be pulled for {PATIENCE.seconds // 60} minutes: {waits}"
    return None


def _placed(pod: Any) -> datetime:
    """Return when a pod was assigned to a node; its time in a queue before that does not count."""
    conditions = pod.status.conditions or ()
    placed = (each.last_transition_time for each in conditions if each.type == "PodScheduled" and each.status == "True")
    time: datetime = next(placed, None) or pod.metadata.creation_timestamp
    return time
