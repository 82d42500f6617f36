"""The `TrainJob` of a stage on several nodes: image, resources, placement, environment and volumes of its pods.

It configures the job's pods as `pipelines/kubeflow/pods.py` configures the pod of a step. Settings that the trainer has no fields for are
patched into the runtime's pods (`runtimePatches`); the pull policy has no field in either, so the runtime's applies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ngrpo.config.cluster import CERTIFICATES, SCRATCH, STAGE_LABEL, ClusterConfig, ResourcesConfig
from ngrpo.environment import CREDENTIAL, METRICS_HOST, METRICS_PORT, PRICES, holds_credential
from ngrpo.section import Section
from ngrpo.stages.supervision import QUIET
from ngrpo.stages.surroundings import PIPELINE_RUN, PROCESSES
from ngrpo.stages.task import Task

TRAIN_JOB = "NGRPO_TRAIN_JOB"
"""Environment variable of the pod of a stage on several nodes: `JobSettings` as JSON."""
NODE = "node"
"""Name that Kubeflow Trainer gives to the replicated job of the nodes and to their container."""
_MANAGER = "trainer.kubeflow.org/kubeflow-sdk"
_MLFLOW = "MLFLOW_"
_TRACKING_USER = "MLFLOW_TRACKING_USERNAME"


class JobSettings(Section):
    """Settings of a stage's job."""

    image: str
    """Image of the nodes."""
    needs: ResourcesConfig
    """Resources that each node requests."""
    cluster: ClusterConfig
    """Number, placement and limits of the nodes."""
    generating: int = 0
    """GPUs of each node that no process trains on (`rollout.gpus`)."""


@dataclass(frozen=True)
class Step:
    """Facts of the pod that creates the job."""

    owner: Mapping[str, str] | None = None
    """Owner reference to the pod's Workflow, so that Kubernetes deletes the job together with it."""
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By environment variable of the pod: name and key of the secret that holds its value."""


def manifest(name: str, task: Task, settings: JobSettings, step: Step | None = None) -> dict[str, Any]:
    """Return the job's manifest, without the kind of its runtime.

    Args:
        name: Its name.
        task: What each node executes.
        settings: Settings of the job.
        step: The pod that creates it.
    """
    cluster, needs = settings.cluster, settings.needs
    step = Step() if step is None else step
    processes = max(needs.gpus - settings.generating, 1)
    # Variables that only the step gets for its pipeline run take precedence: Kubeflow's MLflow plugin may name another server.
    variables = {PROCESSES: str(processes), **QUIET, **cluster.pod_environment(), **_passed_on()}
    secrets = {
        name: {"name": secret, "key": key} for secret, keys in cluster.secrets.items() for name, key in keys.items()
    }
    secrets |= {name: dict(place) for name, place in step.secrets.items() if name.startswith(_MLFLOW)}
    resources = {"cpu": str(needs.cpus), "memory": f"{needs.memory_gib}Gi"}
    if needs.gpus:
        resources[cluster.gpu.resource] = str(needs.gpus)
    metadata: dict[str, Any] = {"name": name, "labels": {STAGE_LABEL: task.node_name, **cluster.queue_labels()}}
    if step.owner is not None:
        metadata["ownerReferences"] = [dict(step.owner)]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"name": cluster.training_runtime},
            "activeDeadlineSeconds": cluster.timeout_seconds(task.stage),
            "trainer": {
                "image": settings.image,
                "command": ["python", "-m", "ngrpo.stages.attempt"],
                # Kubernetes would expand `$(NAME)` and `$$`, so JSON writes the dollar sign as an escape.
                "args": [json.dumps(asdict(task)).replace("$", "\\u0024")],
                "numNodes": cluster.nodes,
                "numProcPerNode": processes,
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": [
                    *({"name": name, "value": value} for name, value in variables.items() if name not in secrets),
                    *({"name": name, "valueFrom": {"secretKeyRef": place}} for name, place in secrets.items()),
                    *_scraped(cluster),
                ],
            },
            "runtimePatches": [_patch(_pod_metadata(cluster, task.node_name), _pod(cluster, needs))],
        },
    }


def _scraped(cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Return the environment that lets Prometheus scrape the training, if the cluster opens a port for it."""
    if cluster.metrics_port is None:
        return []
    return [
        {"name": METRICS_PORT, "value": str(cluster.metrics_port)},
        {"name": METRICS_HOST, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]


def _pod_metadata(cluster: ClusterConfig, node: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {**cluster.labels, STAGE_LABEL: node}}
    annotations = cluster.scrape_annotations()
    return metadata | {"annotations": annotations} if annotations else metadata


def _passed_on() -> dict[str, str]:
    """Return the variables that only the step gets for its pipeline run, without credentials, which are passed by reference only."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in (PIPELINE_RUN, PRICES)
        or (
            name.startswith(_MLFLOW)
            and name != _TRACKING_USER
            and CREDENTIAL.search(name) is None
            and not holds_credential(value)
        )
    }


def _patch(metadata: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    """Return the patch of the runtime's pods."""
    job = {"name": NODE, "template": {"spec": {"template": {"metadata": metadata, "spec": pod}}}}
    return {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _pod(cluster: ClusterConfig, needs: ResourcesConfig) -> dict[str, Any]:
    selector, tolerations = cluster.node_selector, cluster.tolerations
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {"sizeLimit": f"{cluster.scratch_of(needs)}Gi"}}]
    mounts = [{"name": "scratch", "mountPath": SCRATCH}]
    if needs.gpus:
        selector, tolerations = selector | cluster.gpu.node_selector, tolerations + cluster.gpu.tolerations
        shared = {"medium": "Memory", "sizeLimit": f"{cluster.gpu.shared_memory_gib}Gi"}
        volumes.append({"name": "shared-memory", "emptyDir": shared})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    if cluster.certificate_authority is not None:
        volumes.append({"name": "certificates", "configMap": {"name": cluster.certificate_authority}})
        mounts.append({"name": "certificates", "mountPath": CERTIFICATES})
    pod: dict[str, Any] = {
        "nodeSelector": selector,
        "tolerations": [one.model_dump(exclude_none=True) for one in tolerations],
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "securityContext": {
            "runAsUser": cluster.run_as_user,
            "runAsGroup": cluster.run_as_group,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [
            {
                "name": NODE,
                "volumeMounts": mounts,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
    if cluster.service_account is not None:
        pod["serviceAccountName"] = cluster.service_account
    return pod
