"""Why a pod has not started, or how it ended, according to Kubernetes, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_IMAGE = "correct the image's address in images.lock, or cluster.image_pull_secrets"
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CURES = {
    "CreateContainerConfigError": "once that is there, the pod starts by itself",
    **dict.fromkeys(_NO_IMAGE, _IMAGE),
    "SchedulingGated": "it waits in its queue: free what others hold, or raise the queue's quota",
    "Unschedulable": "free or add nodes with what it asks for, or correct resources and the placement in `cluster`",
}


def why_pending(pod: Any) -> str | None:
    """Return why a pod has not started, with the cure.

    Args:
        pod: A `V1Pod` of the Kubernetes client.

    Returns:
        One line; None if the pod has started, or Kubernetes gives no reason (it may be pulling an image).
    """
    if pod.status.phase != "Pending":
        return None
    conditions = pod.status.conditions or ()
    unscheduled = [each for each in conditions if each.type == "PodScheduled" and each.status == "False"]
    told = (each for each in (*_waiting(pod), *unscheduled) if each.message or each.reason in _NO_IMAGE)
    return next(map(_said, told), None)


def image_wait(pod: Any) -> str | None:
    """Return why the image of a pod is not pulled, with the cure; None if it is there, or being pulled.

    Args:
        pod: A `V1Pod` of the Kubernetes client.
    """
    return next((_said(each) for each in _waiting(pod) if each.reason in _NO_IMAGE), None)


def _waiting(pod: Any) -> Iterator[Any]:
    """Yield why containers of a pod wait: `V1ContainerStateWaiting`."""
    for each in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        if each.state is not None and each.state.waiting is not None:
            yield each.state.waiting


def _said(each: Any) -> str:
    said = f"{each.reason}: {' '.join((each.message or 'no message').split())}"
    return f"{said}; {_CURES[each.reason]}" if each.reason in _CURES else said


def why_ended(pod: Any) -> str | None:
    """Return how a pod failed, as far as Kubernetes knows; None if it succeeded or has not ended.

    Args:
        pod: A `V1Pod` of the Kubernetes client.
    """
    if pod.status.phase != "Failed":
        return None
    if pod.status.reason:  # a reason for the whole pod: Evicted, DeadlineExceeded, Preempting
        return f"{pod.status.reason}: {' '.join((pod.status.message or 'no message').split())}"
    for each in pod.status.container_statuses or ():
        ended = each.state.terminated if each.state is not None else None
        if ended is not None and ended.exit_code:
            return f"container {each.name} ended: {ended.reason or 'Error'} (exit code {ended.exit_code})"
    return None
