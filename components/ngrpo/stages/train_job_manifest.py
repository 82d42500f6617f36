"""The `TrainJob` of a stage on several nodes: image, resources, placement, environment and volumes of its pods.

It is to its pods what `pipelines/runtime/pods.py` is to the pod of a step. What the trainer has no fields for is changed in the
runtime's pods (`runtimePatches`); the pull policy, which has no field in either, stays the runtime's.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from ngrpo.cluster import SCRATCH, STAGE_LABEL, ClusterConfig, ResourcesConfig
from ngrpo.section import Section
from ngrpo.stages.surroundings import PIPELINE_RUN, PROCESSES
from ngrpo.stages.task import Task

NODE = "node"
"""Name that Kubeflow Trainer gives to the replicated job of the nodes and to their container."""
_MANAGER = "trainer.kubeflow.org/kubeflow-sdk"
# What tells a stage of its pipeline run is known to the step alone.
_PASSED_ON = (PIPELINE_RUN, "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI")


class JobSettings(Section):
    """How the job of a stage is made."""

    image: str
    """Image of the nodes."""
    needs: ResourcesConfig
    """What each node asks for."""
    cluster: ClusterConfig
    """Number, placement and limits of the nodes."""


def manifest(name: str, task: Task, settings: JobSettings) -> dict[str, Any]:
    """Return the job as Kubernetes reads it, less the kind of its runtime.

    Args:
        name: Its name.
        task: What each node executes.
        settings: How it is made.
    """
    cluster, needs = settings.cluster, settings.needs
    secret = {name for keys in cluster.secrets.values() for name in keys}
    passed_on = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name) and name not in secret}
    variables = {PROCESSES: str(needs.gpus), **passed_on, **cluster.pod_environment()}
    resources = {"cpu": str(needs.cpus), "memory": f"{needs.memory_gib}Gi", cluster.gpu.resource: str(needs.gpus)}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {STAGE_LABEL: task.stage, **cluster.queue_labels()}},
        "spec": {
            "runtimeRef": {"name": cluster.training_runtime},
            "activeDeadlineSeconds": cluster.timeout_seconds(task.stage),
            "trainer": {
                "image": settings.image,
                "command": ["python", "-m", "ngrpo.stages.attempt"],
                # Kubernetes would replace `$(NAME)` and `$$`; in JSON the sign has another spelling.
                "args": [json.dumps(asdict(task)).replace("$", "\\u0024")],
                "numNodes": cluster.nodes,
                "numProcPerNode": needs.gpus,
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": [
                    *({"name": name, "value": value} for name, value in variables.items()),
                    *(
                        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
                        for secret, keys in cluster.secrets.items()
                        for name, key in keys.items()
                    ),
                ],
            },
            "runtimePatches": [_patch({"labels": {**cluster.labels, STAGE_LABEL: task.stage}}, _pod(cluster))],
        },
    }


def _patch(metadata: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    """Return what is changed of the runtime's pods."""
    job = {"name": NODE, "template": {"spec": {"template": {"metadata": metadata, "spec": pod}}}}
    return {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _pod(cluster: ClusterConfig) -> dict[str, Any]:
    shared = {"medium": "Memory", "sizeLimit": f"{cluster.gpu.shared_memory_gib}Gi"}
    pod: dict[str, Any] = {
        "nodeSelector": cluster.node_selector | cluster.gpu.node_selector,
        "tolerations": [one.model_dump(exclude_none=True) for one in (*cluster.tolerations, *cluster.gpu.tolerations)],
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "securityContext": {
            "runAsUser": cluster.run_as_user,
            "runAsGroup": cluster.run_as_group,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{cluster.scratch_gib}Gi"}},
            {"name": "shared-memory", "emptyDir": shared},
        ],
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [
                    {"name": "scratch", "mountPath": SCRATCH},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
    if cluster.service_account is not None:
        pod["serviceAccountName"] = cluster.service_account
    return pod
