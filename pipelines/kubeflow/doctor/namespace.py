"""Checks of the runs' namespace beyond those of `preflight`: sidecars, and quotas that conflict with queues."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from kubernetes.utils import parse_quantity

from ngrpo.config.cluster import ClusterConfig
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.doctor.installed import selects
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import KUEUE, Kubernetes


def labels(api: Kubernetes) -> Iterator[Finding]:
    """Report the labels of the namespace that affect pods, and check the sidecar that one of them injects.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    own = labels_of(api)
    names = (
        "app.kubernetes.io/part-of",
        "istio-injection",
        "pod-security.kubernetes.io/enforce",
    )
    yield Finding("labels", True, ", ".join(f"{name}={own.get(name, '(not set)')}" for name in names))
    mlflow = api.get(f"/apis/apps/v1/namespaces/{namespace()}/deployments/mlflow")
    if own.get("istio-injection") != "enabled" or mlflow is None:
        return
    template = (mlflow["spec"]["template"].get("metadata") or {}).get("labels") or {}
    if template.get("sidecar.istio.io/inject") == "false":
        yield Finding("sidecar of MLflow", True, "off, as those of stages are")
    else:
        yield Finding(
            "sidecar of MLflow",
            False,
            "Istio puts one there, and it refuses stages, whose pods have none",
            'set the label `sidecar.istio.io/inject: "false"` on the pods of deployment mlflow, as k8s/base does',
        )


def queue(api: Kubernetes, cluster: ClusterConfig) -> Iterator[Finding]:
    """Check whether the cluster queue admits workloads of the namespace, and whether ResourceQuotas let pods reach the queue.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    if cluster.queue is None:
        return
    local = api.get(f"{KUEUE}/namespaces/{namespace()}/localqueues/{cluster.queue}")
    shared = local and api.get(f"{KUEUE}/clusterqueues/{local['spec']['clusterQueue']}")
    if not shared:
        return  # the preflight reports it
    name = shared["metadata"]["name"]
    for item in (local, shared):
        stopped = item["spec"].get("stopPolicy") or "None"
        if stopped != "None":
            title = item["metadata"]["name"]
            yield Finding(
                "cluster.queue admission", False, f"queue {title} is stopped ({stopped})", "set its stopPolicy to None"
            )
            return
    selector = shared["spec"].get("namespaceSelector")
    if selector is None or (selector and not selects(selector, labels_of(api))):
        yield Finding(
            "cluster.queue admission",
            False,
            f"the namespaceSelector of cluster queue {name} leaves {namespace()} out: nothing of it is ever admitted",
            "correct it; {} selects every namespace",
        )
        return
    yield Finding("cluster.queue admission", True, f"cluster queue {name} takes workloads of {namespace()}")
    yield from _quotas(api, shared)


def labels_of(api: Kubernetes) -> dict[str, str]:
    """Return the labels of the namespace of the runs.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    found = api.get(f"/api/v1/namespaces/{namespace()}") or {}
    return dict((found.get("metadata") or {}).get("labels") or {})


def _quotas(api: Kubernetes, shared: Any) -> Iterator[Finding]:
    """Look for ResourceQuotas that refuse pods before Kueue can queue them, because quotas count waiting pods."""
    queued: dict[str, Decimal] = {}
    for group in shared["spec"].get("resourceGroups") or ():
        for flavor in group["flavors"]:
            for one in flavor["resources"]:
                queued[one["name"]] = queued.get(one["name"], Decimal(0)) + parse_quantity(one["nominalQuota"])
    for quota in api.items(f"/api/v1/namespaces/{namespace()}/resourcequotas"):
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue  # applies to some pods only, for example those of a priority class
        for key, most in sorted((quota["spec"].get("hard") or {}).items()):
            resource = key.removeprefix("requests.").removeprefix("limits.")
            if queued.get(resource) and parse_quantity(most) <= queued[resource]:
                yield Finding(
                    "resource quotas and queue",
                    False,
                    f"ResourceQuota {quota['metadata']['name']} allows {key} {most}, no more than the queue's quota: it counts pods that "
                    "wait, and refuses the next ones before Kueue can queue them",
                    f"set {key} well above the queue's quota, or leave it out",
                )
                return
    yield Finding("resource quotas and queue", True, "no ResourceQuota is in the way of the queue")
