"""Why a pod has not started: what Kubernetes says of it, and what to do."""

from __future__ import annotations

from typing import Any

_IMAGE = "correct the image's address in images.lock, or cluster.image_pull_secrets"
_CURES = {
    "CreateContainerConfigError": "once that is there, the pod starts by itself",
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "InvalidImageName": _IMAGE,
    "SchedulingGated": "it waits in its queue: free what others hold, or raise the queue's quota",
    "Unschedulable": "free or add nodes with what it asks for, or correct resources and the placement in `cluster`",
}


def why_pending(pod: Any) -> str | None:
    """Return why a pod has not started, with the cure.

    Args:
        pod: A `V1Pod` of the Kubernetes client.

    Returns:
        One line; none of a pod that has started, or where Kubernetes gives no reason (it may be pulling an image).
    """
    status = pod.status
    if status.phase != "Pending":
        return None
    containers = [*(status.init_container_statuses or ()), *(status.container_statuses or ())]
    waiting = [each.state.waiting for each in containers if each.state is not None and each.state.waiting is not None]
    unscheduled = [each for each in status.conditions or () if each.type == "PodScheduled" and each.status == "False"]
    for each in (*waiting, *unscheduled):
        if each.message:
            said = f"{each.reason}: {' '.join(each.message.split())}"
            return f"{said}; {_CURES[each.reason]}" if each.reason in _CURES else said
    return None
