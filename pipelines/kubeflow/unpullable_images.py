"""Images that a run waits for and that cannot be pulled: Kubernetes tries for ever, and Kubeflow waits with it until the pod's deadline."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from ngrpo.config.cluster import STAGE_LABEL
from ngrpo_kfp.components.launching.pending_pods import image_wait
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

PATIENCE = timedelta(minutes=10)
"""How long an image may fail to be pulled: a registry that restarts, or a limit on pulls, may take minutes."""


def unpullable(run_id: str) -> str | None:
    """Return which image of a run cannot be pulled, as one line with the cure; none while all is well, or may still become so.

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
