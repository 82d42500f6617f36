"""Check whether the cluster has nodes with the GPUs that stages request: their number, memory and node labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from kubernetes.utils import parse_quantity

from ngrpo.config import RunConfig
from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

NODES = "/api/v1/nodes"
_PRODUCT, _MEMORY = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"
"""Labels of NVIDIA's GPU feature discovery: the product name of a node's GPUs, and the memory of each in MiB."""
_USABLE = 0.95
"""Least share of a GPU's nominal memory that its label may have: an H100 of 80 GB has 81,559 MiB, 79.6 GiB."""


def gpu_nodes(kubernetes: Kubernetes, name: str, config: RunConfig, stages: Collection[str]) -> Finding:
    """Check whether there are nodes for every stage that requests GPUs. If there are none, an autoscaler may still add some.

    Args:
        kubernetes: The cluster.
        name: Name of the finding.
        config: Configuration of the run: `cluster` and `resources`.
        stages: The stages that will run, including those without GPUs.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    cluster = config.cluster
    labels = cluster.node_selector | cluster.gpu.node_selector
    nodes = [node for node in kubernetes.items(NODES) if _gpus(node, cluster.gpu.resource)]
    labelled = [node for node in nodes if labels.items() <= _labels(node).items()]
    for stage in stages:
        asked = config.needs(stage)
        wanted = cluster.nodes if DECLARED[stage].parallel else 1
        fit = [
            node
            for node in labelled
            if _gpus(node, cluster.gpu.resource) >= asked.gpus and _memory(node) >= _USABLE * asked.gpu_memory_gib
        ]
        if asked.gpus and len(fit) < wanted:
            each = f"{asked.gpus} x {cluster.gpu.resource}"
            each += f" of {asked.gpu_memory_gib} GiB" if asked.gpu_memory_gib else ""
            chosen = "".join(f", {key}={value}" for key, value in labels.items())
            return Finding(
                name,
                None,
                f"{stage} asks for {_counted(wanted)} with {each}{chosen}; the cluster has {_there(nodes, cluster.gpu.resource)}",
                f"correct cluster.gpu.node_selector, or lower resources.{stage}: without an autoscaler its pod waits for ever",
            )
    return Finding(name, True, f"there are nodes for every stage ({_there(labelled, cluster.gpu.resource)})")


def _counted(nodes: int) -> str:
    return "a node" if nodes == 1 else f"{nodes} nodes"


def _there(nodes: Collection[Mapping[str, Any]], resource: str) -> str:
    """List the nodes with GPUs, grouped by kind."""
    kinds = Counter(f"{_gpus(node, resource)} x {_labels(node).get(_PRODUCT, resource)}" for node in nodes)
    return ", ".join(f"{_counted(count)} with {kind}" for kind, count in kinds.items()) or f"no node with {resource}"


def _gpus(node: Mapping[str, Any], resource: str) -> int:
    return int(parse_quantity(node["status"].get("allocatable", {}).get(resource, 0)))


def _labels(node: Mapping[str, Any]) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def _memory(node: Mapping[str, Any]) -> float:
    """Return the GiB of each GPU of a node; infinity if no label has it."""
    said = _labels(node).get(_MEMORY, "")
    return int(said) / 1024 if said.isdigit() else float("inf")
