"""A pod on the cluster that tests what can be reached from there (with `reach`)."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any

from kubernetes import client

from ngrpo.config.cluster import CERTIFICATES, SCRATCH, STAGE_LABEL, ClusterConfig
from ngrpo_kfp.components.launching.pending_pods import why_pending
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError, Refused
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.doctor.reach import MARK
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

PATIENCE_SECONDS = 180.0
"""Time limit for the pod to end, including the pull of its image."""
POLL_SECONDS = 1.0
_NAME = "from a pod"
_RESOURCES = {"cpu": "500m", "memory": "1Gi"}  # enough to import boto3 and MLflow
_LAST_LINES = 3


def probe(api: Kubernetes, cluster: ClusterConfig, image: str) -> Iterator[Finding]:
    """Run the pod, yield its findings, and delete it whatever happens.

    Args:
        api: The cluster.
        cluster: Settings of the pods of stages.
        image: The image for stages without GPUs.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    where = namespace()
    # Do not create a pod that cannot be deleted afterwards.
    denied = [verb for verb in ("create", "delete") if not api.may(verb, "pods", where)]
    if denied:
        yield Finding(
            _NAME,
            None,
            f"not looked: this account may not {' and '.join(denied)} pods in namespace {where}",
            "ask for that right",
        )
        return
    pods, name = f"/api/v1/namespaces/{where}/pods", f"ngrpo-doctor-{secrets.token_hex(4)}"
    try:
        # As a list, so that the pod is gone before the first finding is reported.
        findings = list(_run(api, f"{pods}/{name}", pods, manifest(name, cluster, image)))
    except BaseException:
        for finding in _deleted(api, pods, name):
            print(f"ngrpo: {finding.said}; {finding.cure}", file=sys.stderr)
        raise
    yield from _deleted(api, pods, name)
    yield from findings


def manifest(name: str, cluster: ClusterConfig, image: str) -> dict[str, Any]:
    """Return the pod: to network policies, PodDefaults, secrets and nodes it looks like a stage, except that it is not queued.

    Args:
        name: Its name.
        cluster: Settings of the pods of stages.
        image: Its image.
    """
    variables: list[dict[str, Any]] = [
        {"name": key, "value": value} for key, value in cluster.pod_environment().items()
    ]
    variables += [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": value}}}
        for secret, keys in cluster.secrets.items()
        for key, value in keys.items()
    ]
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}]
    mounts = [{"name": "scratch", "mountPath": SCRATCH}]
    if cluster.certificate_authority is not None:
        volumes.append({"name": "certificates", "configMap": {"name": cluster.certificate_authority}})
        mounts.append({"name": "certificates", "mountPath": CERTIFICATES})
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": int(PATIENCE_SECONDS),
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": [one.model_dump(exclude_none=True) for one in cluster.tolerations],
        "imagePullSecrets": [{"name": one} for one in cluster.image_pull_secrets],
        "securityContext": {
            "runAsUser": cluster.run_as_user,
            "runAsGroup": cluster.run_as_group,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [
            {
                "name": "main",
                "image": image,
                "imagePullPolicy": cluster.image_pull_policy,
                "command": ["python3", "-m", "ngrpo_kfp.pipelines.kubeflow.doctor.reach"],
                "env": variables,
                "resources": {"requests": _RESOURCES, "limits": _RESOURCES},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
    }
    if cluster.service_account is not None:
        spec["serviceAccountName"] = cluster.service_account
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            # Kubeflow Pipelines sets the last label and the annotation on every step.
            "labels": {**cluster.labels, STAGE_LABEL: "doctor", "pipelines.kubeflow.org/v2_component": "true"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": spec,
    }


def _run(api: Kubernetes, path: str, pods: str, body: dict[str, Any]) -> Iterator[Finding]:
    try:
        api.create(pods, body)
    except Refused as error:
        if error.status in (403, 422):  # a quota or a policy, which would refuse a stage too
            cure = "let the quota or policy that it names admit stages: `cluster` says how their pods are made"
            yield Finding(_NAME, False, error.said, cure)
            return
        raise
    until = time.monotonic() + PATIENCE_SECONDS
    pod = api.get(path)
    while pod is not None and _phase(pod) not in ("Succeeded", "Failed") and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        pod = api.get(path)
    if pod is None:
        yield Finding(_NAME, None, "the pod was deleted by somebody else before it was done", "run the command again")
    elif _phase(pod) == "Pending":
        said = why_pending(client.ApiClient().deserialize(_Answer(pod), "V1Pod")) or "Kubernetes does not say why"
        yield Finding(_NAME, False, f"the pod has not started in {PATIENCE_SECONDS:.0f} s: {said}")
    else:
        yield from _told(list(api.log_lines(body["metadata"]["name"])), _phase(pod))


def _told(log: list[str], phase: str) -> Iterator[Finding]:
    """Turn the pod's log lines into findings."""
    results = [json.loads(line.removeprefix(MARK)) for line in log if line.startswith(MARK)]
    for each in results:
        yield Finding(f"{each['name']} {_NAME}", bool(each["ok"]), str(each["said"]))
    if phase != "Succeeded":
        last = " / ".join(log[-_LAST_LINES:]) or "it printed nothing"
        state = "it is not done" if phase == "Running" else "it failed"
        yield Finding(
            _NAME,
            False,
            f"after {PATIENCE_SECONDS:.0f} s at most, {state}: {last}",
            "see that the image is that of this version",
        )


def _deleted(api: Kubernetes, pods: str, name: str) -> Iterator[Finding]:
    """Delete the pod if it exists; yield a finding only if it may be left behind."""
    try:
        api.delete(f"{pods}/{name}", grace_seconds=0)
    except KubernetesError as error:
        cure = f"`kubectl -n {namespace()} delete pod {name}`"
        yield Finding(_NAME, False, f"pod {name} may be left: {error}", cure)


def _phase(pod: Any) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


class _Answer:
    """The kind of response from which the Kubernetes client reads a typed object."""

    def __init__(self, item: Any):
        self.data = json.dumps(item)
