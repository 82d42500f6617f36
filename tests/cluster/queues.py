"""A queue with room for one stage at a time, and two priorities, for as long as a test lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client
from session import Session

from ngrpo.stages.declarations import STAGES

_API = ("kueue.x-k8s.io", "v1beta2")


@dataclass(frozen=True)
class Queue:
    """Names of the queue and of its two priorities."""

    name: str
    low: str
    high: str


@contextmanager
def queue_of_one_stage(session: Session) -> Iterator[Queue]:
    """Provide a queue of the session's own; the test fails where there is no Kueue.

    Its quota is that of the largest stage and half a core and half a gibibyte more, so that no two stages fit.
    """
    queue = Queue(session.mark, f"{session.mark}-low", f"{session.mark}-high")
    needs = [session.place.config.needs(stage) for stage in STAGES]
    cpus, memory = max(each.cpus for each in needs), max(each.memory_gib for each in needs)
    quotas = [
        {"name": "cpu", "nominalQuota": f"{1000 * cpus + 500}m"},
        {"name": "memory", "nominalQuota": f"{1024 * memory + 512}Mi"},
    ]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": queue.name, "resources": quotas}]}
    made = [
        ("resourceflavors", None, _object("ResourceFlavor", queue.name, spec={})),
        (
            "clusterqueues",
            None,
            _object(
                "ClusterQueue",
                queue.name,
                spec={
                    "namespaceSelector": {},
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                    "resourceGroups": [group],
                },
            ),
        ),
        ("localqueues", session.place.namespace, _object("LocalQueue", queue.name, spec={"clusterQueue": queue.name})),
        ("workloadpriorityclasses", None, _object("WorkloadPriorityClass", queue.low, value=10)),
        ("workloadpriorityclasses", None, _object("WorkloadPriorityClass", queue.high, value=20)),
    ]
    try:
        for kind, namespace, body in made:
            _create(session.custom, kind, namespace, body)
        yield queue
    finally:
        for kind, namespace, body in reversed(made):
            _delete(session.custom, kind, namespace, body["metadata"]["name"])


def _object(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "/".join(_API), "kind": kind, "metadata": {"name": name}, **fields}


def _create(api: client.CustomObjectsApi, kind: str, namespace: str | None, body: dict[str, Any]) -> None:
    try:
        if namespace is None:
            api.create_cluster_custom_object(*_API, kind, body)
        else:
            api.create_namespaced_custom_object(*_API, namespace, kind, body)
    except client.ApiException as error:
        if error.status == 404:
            pytest.fail(f"there is no Kueue that serves {'/'.join(_API)}: install Kueue 0.17 or newer", pytrace=False)
        raise


def _delete(api: client.CustomObjectsApi, kind: str, namespace: str | None, name: str) -> None:
    try:
        if namespace is None:
            api.delete_cluster_custom_object(*_API, kind, name)
        else:
            api.delete_namespaced_custom_object(*_API, namespace, kind, name)
    except client.ApiException as error:
        if error.status != 404:  # what could not be made
            raise
