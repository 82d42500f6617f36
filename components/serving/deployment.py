"""Apply the service of a model, evaluate it through its endpoint, and keep it or roll back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ngrpo.contracts.evaluation import Evaluation
from ngrpo.errors import ClusterError
from ngrpo.evaluation.equivalence import Equivalence
from ngrpo_kfp.components.serving.inference_service import SERVICES
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesObjects

_SECONDS_BETWEEN_LOOKS = 5.0
_OF_THE_CLUSTER = ("resourceVersion", "uid", "generation", "creationTimestamp", "managedFields", "selfLink")
"""Metadata fields that Kubernetes sets itself."""


def deploy(
    manifest: Mapping[str, Any],
    kubernetes: KubernetesObjects,
    *,
    evaluate: Callable[[str], Evaluation],
    decide: Callable[[Evaluation], Equivalence],
    minutes: float,
    say: Callable[[str], None],
    inside: bool = False,
    first_seen: Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None] = lambda service: service,
) -> Equivalence:
    """Deploy a model and decide whether to keep it.

    If anything fails after the service was changed, the service is restored; a service that did not exist before is deleted.

    Args:
        manifest: The service (`inference_service`).
        kubernetes: The cluster.
        evaluate: Evaluates the model through the endpoint with this address.
        decide: Compares that evaluation with the one that the promotion was based on.
        minutes: Time limit for the service to become ready.
        say: Receives lines of progress.
        inside: Whether this is a pod of the cluster, which reaches the service under another address.
        first_seen: Given the current service, or None, returns the one from before the first try, because a killed try may have changed
            it.

    Raises:
        ClusterError: The cluster refuses, or the service does not become ready.
        NGRPOError: The evaluation failed.
    """
    path = _path(manifest)
    before = first_seen(kubernetes.get(path))
    _apply(manifest, kubernetes)
    try:
        url = _address(kubernetes, path, minutes, say, inside=inside)
        say(f"ready: {url}")
        verdict = decide(evaluate(url))
    except BaseException:
        _put_back(manifest, before, kubernetes, say)
        raise
    if verdict.decision == "refused":
        _put_back(manifest, before, kubernetes, say)
    return verdict


def _path(manifest: Mapping[str, Any]) -> str:
    metadata = manifest["metadata"]
    return f"{SERVICES.format(namespace=metadata['namespace'])}/{metadata['name']}"


def _apply(manifest: Mapping[str, Any], kubernetes: KubernetesObjects) -> None:
    """Create a service, or replace the one of that name."""
    path = _path(manifest)
    there = kubernetes.get(path)
    if there is None:
        kubernetes.create(path.rpartition("/")[0], manifest)
        return
    # Kubernetes refuses one of two concurrent replacements.
    version = {"resourceVersion": there["metadata"]["resourceVersion"]}
    kubernetes.replace(path, {**manifest, "metadata": {**manifest["metadata"], **version}})


def _put_back(
    manifest: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    kubernetes: KubernetesObjects,
    say: Callable[[str], None],
) -> None:
    name = manifest["metadata"]["name"]
    if before is None:
        kubernetes.delete(_path(manifest))
        say(f"deleted: {name}, which was not there before")
        return
    metadata = {field: value for field, value in before["metadata"].items() if field not in _OF_THE_CLUSTER}
    _apply({**{field: before[field] for field in ("apiVersion", "kind", "spec")}, "metadata": metadata}, kubernetes)
    say(f"rolled back: {name} serves what it served before")


def _address(
    kubernetes: KubernetesObjects, path: str, minutes: float, say: Callable[[str], None], *, inside: bool
) -> str:
    """Wait until the current version of a service is ready, and return the address of its API.

    Raises:
        ClusterError: It is not ready in time, or is gone.
    """
    deadline = time.monotonic() + 60 * minutes
    last = ""
    while True:
        service = kubernetes.get(path)
        if service is None:
            raise ClusterError(f"{path}: somebody deleted it; deploy again")
        status = service.get("status") or {}
        ready: Mapping[str, Any] = next(
            (each for each in status.get("conditions") or () if each["type"] == "Ready"), {}
        )
        # A status with an older generation describes the previous service.
        is_of_now = status.get("observedGeneration", 0) >= service["metadata"].get("generation", 0)
        url = ((status.get("address") or {}) if inside else status).get("url")
        if is_of_now and ready.get("status") == "True" and url:
            return f"{url.rstrip('/')}/v1"
        why = " ".join(str(ready.get("message") or ready.get("reason") or "KServe has not looked at it yet").split())
        if why != last:
            say(f"not ready: {why}")
            last = why
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{path}: not ready within {minutes:g} minutes ({why[:200]}); see `kubectl describe`, or raise deployment.ready_minutes"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
