"""Check whether Kueue's queue and the namespace's quotas have room for each stage: a pod that requests more waits for ever."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from kubernetes.utils import parse_quantity

from ngrpo.config import RunConfig
from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import KUEUE, Kubernetes

Asked = Mapping[str, Mapping[str, Decimal]]
"""By stage, the amount of each resource that it requests at once."""


def local_queue(name: str) -> str:
    """Return the path of a local queue in the namespace of the runs."""
    return f"{KUEUE}/namespaces/{namespace()}/localqueues/{name}"


def asked_by(config: RunConfig, stages: Collection[str]) -> Asked:
    """Return by stage what it requests at once: for its pod, or for all nodes of its job."""
    cluster = config.cluster
    return {
        stage: _amounts(config.needs(stage), cluster, cluster.nodes if DECLARED[stage].parallel else 1)
        for stage in stages
    }


def queue_quota(kubernetes: Kubernetes, name: str, queue: str, asked: Asked) -> Finding:
    """Check whether the quota of the cluster queue has room for each stage."""
    local = kubernetes.get(local_queue(queue))
    if local is None:
        return Finding(name, None, f"there is no local queue {queue}")
    whole = local["spec"]["clusterQueue"]
    found = kubernetes.get(f"{KUEUE}/clusterqueues/{whole}")
    if found is None:
        return Finding(
            name,
            False,
            f"there is no cluster queue {whole}, which local queue {queue} names",
            "apply k8s/cluster or k8s/overlays/gpu/cluster",
        )
    for stage, wanted in asked.items():
        lacking = _lacking(found["spec"], wanted)
        if lacking is not None:
            return Finding(
                name,
                False,
                f"{stage} can never start in cluster queue {whole}: {lacking}",
                f"lower resources.{stage}, or raise the quota of {whole}",
            )
    return Finding(name, True, f"cluster queue {whole} can hold every stage")


def _lacking(queue: Mapping[str, Any], wanted: Mapping[str, Decimal]) -> str | None:
    """Return the part of a request that a cluster queue can never grant; None if it can grant all of it.

    Args:
        queue: `spec` of the cluster queue.
        wanted: Amount by name of resource.
    """
    groups = queue.get("resourceGroups") or ()
    covered = {resource for group in groups for resource in group["coveredResources"]}
    for resource in wanted:
        if resource not in covered:
            return f"it has no {resource}"
    cohort = queue.get("cohortName") or queue.get("cohort")
    for group in groups:
        own = {resource: amount for resource, amount in wanted.items() if resource in group["coveredResources"]}
        most = [_most(flavor, bool(cohort)) for flavor in group["flavors"]]
        # One flavor must have room for all resources together.
        if not any(all(amount <= flavor[resource] for resource, amount in own.items()) for flavor in most):
            texts = [
                f"{_text(resource, amount)} (of {_text(resource, max(each[resource] for each in most))})"
                for resource, amount in own.items()
            ]
            return f"it asks for {', '.join(texts)}" + (" of one flavor" if len(most) > 1 else "")
    return None


def _most(flavor: Mapping[str, Any], cohort: bool) -> dict[str, Decimal]:
    """Return by resource the most that a flavor of a queue can grant, including what it may borrow from its cohort."""
    most = {}
    for resource in flavor["resources"]:
        limit = resource.get("borrowingLimit")
        amount = parse_quantity(resource["nominalQuota"])
        if cohort:
            amount = Decimal("Infinity") if limit is None else amount + parse_quantity(limit)
        most[resource["name"]] = amount
    return most


def resource_quotas(kubernetes: Kubernetes, name: str, asked: Asked) -> Finding:
    """Check whether the quotas of the namespace have room for each stage, and admit Argo's own containers."""
    found = kubernetes.items(f"/api/v1/namespaces/{namespace()}/resourcequotas")
    # A quota with a scope applies to some pods only, for example those of a priority class.
    quotas = [each for each in found if not each["spec"].get("scopes") and not each["spec"].get("scopeSelector")]
    for quota in quotas:
        hard, title = quota["spec"].get("hard") or {}, quota["metadata"]["name"]
        for limit, most in hard.items():
            resource = limit.removeprefix("requests.").removeprefix("limits.")
            for stage, wanted in asked.items():
                if resource in wanted and wanted[resource] > parse_quantity(most):
                    return Finding(
                        name,
                        False,
                        f"{stage} asks for {_text(resource, wanted[resource])}, and ResourceQuota {title} allows {most} in all",
                        f"lower resources.{stage}, or raise the quota",
                    )
        limited = [limit for limit in hard if limit.rpartition(".")[2] in ("cpu", "memory")]
        if limited and not kubernetes.items(f"/api/v1/namespaces/{namespace()}/limitranges"):
            return Finding(
                name,
                False,
                f"ResourceQuota {title} limits {', '.join(limited)}, so that every container must ask for some, and Argo's own do not",
                "add a LimitRange with defaults to the namespace, or leave cpu and memory out of the quota",
            )
    titles = ", ".join(quota["metadata"]["name"] for quota in quotas)
    return Finding(name, True, f"{titles}: room for every stage" if titles else "none")


def _amounts(needs: ResourcesConfig, cluster: ClusterConfig, pods: int) -> dict[str, Decimal]:
    each = {
        "cpu": Decimal(needs.cpus),
        "memory": Decimal(needs.memory_gib) * 2**30,
        cluster.gpu.resource: Decimal(needs.gpus),
    }
    return {resource: pods * amount for resource, amount in each.items() if amount}


def _text(resource: str, amount: Decimal) -> str:
    return f"{resource} {amount / 2**30:g}Gi" if resource == "memory" else f"{resource} {amount:g}"
