"""Checks of a cluster's programs and their settings: versions, Argo's retries, Kueue's integrations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ngrpo.config.cluster import ClusterConfig
from ngrpo.errors import ClusterError
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

Version = tuple[int, int]

_TAG = re.compile(r":v?(\d+)\.(\d+)[^@]*(?:@|$)")
_KUBERNETES: Version = (1, 27)  # the first with scheduling gates on by default, by which Kueue holds pods back
_LOST_PODS = ("OnError", "Always")


@dataclass(frozen=True)
class Program:
    """A program that a cluster must or may have."""

    name: str
    """Its common name."""
    deployment: str
    """Name of its deployment."""
    image: str
    """Last part of its image's name, for installations with another name of the deployment."""
    tried: Version
    """Version that ngrpo has run on."""


PIPELINES = Program("Kubeflow Pipelines", "ml-pipeline", "kfp-api-server", (2, 17))
ARGO = Program("Argo Workflows", "workflow-controller", "workflow-controller", (4, 0))
KUEUE = Program("Kueue", "kueue-controller-manager", "kueue", (0, 19))
TRAINER = Program("Kubeflow Trainer", "kubeflow-trainer-controller-manager", "trainer-controller-manager", (2, 3))
JOBSET = Program("JobSet", "jobset-controller-manager", "jobset", (0, 12))


@dataclass(frozen=True)
class Installed:
    """A program as it is installed."""

    namespace: str
    """Where it runs."""
    image: str
    """Its image."""

    @property
    def version(self) -> Version | None:
        """Major and minor version by the tag of its image; None if the image has only a digest."""
        found = _TAG.search(self.image.rpartition("/")[2])
        return (int(found[1]), int(found[2])) if found else None


def find(deployments: list[Any], program: Program) -> Installed | None:
    """Return how a program is installed, None if it is not. Of several, the one in the namespace of Kubeflow Pipelines.

    Args:
        deployments: All deployments of the cluster.
        program: The program.
    """
    homes = {one["metadata"]["namespace"] for one in deployments if one["metadata"]["name"] == PIPELINES.deployment}
    for item in sorted(deployments, key=lambda one: one["metadata"]["namespace"] not in homes):
        for container in item["spec"]["template"]["spec"]["containers"]:
            base = re.split("[:@]", container["image"].rpartition("/")[2])[0]
            if program.image == base or program.deployment == item["metadata"]["name"]:
                return Installed(item["metadata"]["namespace"], container["image"])
    return None


def deployments_of(api: Kubernetes) -> list[Any]:
    """Return all deployments of the cluster.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    return api.items("/apis/apps/v1/deployments")


def kubernetes(api: Kubernetes) -> Iterator[Finding]:
    """Check the version of Kubernetes.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    said = str((api.get("/version") or {}).get("gitVersion", "of unknown version"))
    found = _TAG.search(f":{said}")
    if found is not None and (int(found[1]), int(found[2])) < _KUBERNETES:
        yield Finding(
            "version of Kubernetes", False, said, "upgrade to 1.27 or newer: Kueue holds pods back by scheduling gates"
        )
    else:
        yield Finding("version of Kubernetes", None if found is None else True, said)


def versions(deployments: list[Any], cluster: ClusterConfig) -> Iterator[Finding]:
    """Check the versions of Kubeflow Pipelines, Argo, Kueue, Trainer and JobSet."""
    yield _version(PIPELINES, deployments, "install Kubeflow Pipelines 2.17")
    yield _version(ARGO, deployments, "install Argo Workflows as Kubeflow Pipelines 2.17 brings it")
    if cluster.queue is None:
        yield Finding(f"version of {KUEUE.name}", True, "not needed: cluster.queue is not set")
    elif cluster.nodes == 1:  # with several nodes the preflight requires a newer one
        yield _version(
            KUEUE,
            deployments,
            "install Kueue 0.15 or newer",
            least=(0, 15),
            why="queues are in its API v1beta2, which 0.15 brought",
        )
    if cluster.nodes == 1:
        yield Finding(f"version of {TRAINER.name}", True, "not needed: cluster.nodes = 1")
    else:
        yield _version(
            TRAINER, deployments, "install Kubeflow Trainer 2.3", least=(2, 3), why="jobs are written for that version"
        )
        yield _version(JOBSET, deployments, "install JobSet as Kubeflow Trainer 2.3 brings it")


def _version(
    program: Program, deployments: list[Any], cure: str, *, least: Version | None = None, why: str = ""
) -> Finding:
    """Compare an installed version with the oldest one that works, or, if that is not given, with the one that ngrpo has run on."""
    installed, name = find(deployments, program), f"version of {program.name}"
    if installed is None:
        return Finding(name, False, "it is not installed", cure)
    said = f"{installed.image.rpartition('/')[2]} in namespace {installed.namespace}"
    version = installed.version
    if version is None:
        return Finding(name, None, f"{said}: its image has no tag that tells the version", cure)
    if least is not None and version < least:
        return Finding(name, False, said, f"{cure}: {why}")
    if version[0] != program.tried[0] or (least is None and version != program.tried):
        tried = ".".join(map(str, program.tried))
        return Finding(name, None, said, f"ngrpo was run on {tried} and not on this version: try `make test-cluster`")
    return Finding(name, True, said)


def retries_of_argo(api: Kubernetes, deployments: list[Any]) -> Iterator[Finding]:
    """Check what Argo does with a lost pod, and for how long it keeps workflows.

    Args:
        api: The cluster.
        deployments: Those that could be read.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    where = _namespace_of(deployments, ARGO, "kubeflow")
    name = "workflow-controller-configmap"
    found = api.get(f"/api/v1/namespaces/{where}/configmaps/{name}")
    data = (found or {}).get("data") or {}
    # All settings may also be in one document.
    defaults = (
        _document(data.get("workflowDefaults"), name)
        or _document(data.get("config"), name).get("workflowDefaults")
        or {}
    )
    spec = defaults.get("spec") or {}
    strategy = (spec.get("templateDefaults") or {}).get("retryStrategy") or {}
    # Without a policy Argo retries failures; with an expression it retries what the expression admits.
    policy = strategy.get("retryPolicy") or ("Always" if "expression" in strategy else "OnFailure")
    if policy in _LOST_PODS:
        also = " (failures too, once the tries inside the pod are used up)" if policy == "Always" else ""
        yield Finding(
            "Argo's retries", True, f"retryPolicy {policy}: stages whose pod is lost or preempted are tried again{also}"
        )
    else:
        yield Finding(
            "Argo's retries",
            False,
            f"retryPolicy {policy}: failures are tried again inside the pod all the same, but a pod that is lost or preempted ends its run",
            f"in ConfigMap {name} of namespace {where}, set `workflowDefaults: {{spec: {{templateDefaults: {{retryStrategy: "
            '{limit: "2", retryPolicy: OnError}}}}`, as Kubeflow Pipelines 2.17 does',
        )
    seconds = (spec.get("ttlStrategy") or {}).get("secondsAfterCompletion")
    kept = "until they are deleted" if seconds is None else f"{seconds} s after their end"
    yield Finding(
        "Argo's clean-up", True, f"workflows and their pods are kept {kept}; logs of stages stay beside their artifacts"
    )


def integrations_of_kueue(api: Kubernetes, cluster: ClusterConfig, deployments: list[Any]) -> Iterator[Finding]:
    """Check whether Kueue manages the pods and jobs of runs, in their namespace.

    Args:
        api: The cluster.
        cluster: The queue, if one is set, and the number of nodes.
        deployments: Those that could be read.

    Raises:
        KubernetesError: The cluster refuses or cannot be reached.
    """
    if cluster.queue is None:
        return
    where = _namespace_of(deployments, KUEUE, "kueue-system")
    name = "kueue-manager-config"
    found = api.get(f"/api/v1/namespaces/{where}/configmaps/{name}")
    if found is None:
        yield Finding("Kueue's integrations", None, f"there is no ConfigMap {name} in namespace {where}")
        return
    settings: dict[str, Any] = {}
    for text in (found.get("data") or {}).values():
        settings |= _document(text, name)
    needed = ["pod", *(["trainer.kubeflow.org/trainjob"] if cluster.nodes > 1 else [])]
    frameworks = (settings.get("integrations") or {}).get("frameworks") or ["batch/job"]
    missing = [framework for framework in needed if framework not in frameworks]
    if missing:
        yield Finding(
            "Kueue's integrations",
            False,
            f"{', '.join(missing)} not among {', '.join(frameworks)}: stages would start without waiting in the queue",
            f"add to integrations.frameworks in ConfigMap {name} of namespace {where}, and restart its controller",
        )
    else:
        yield Finding("Kueue's integrations", True, ", ".join(needed))
    labels = ((api.get(f"/api/v1/namespaces/{namespace()}") or {}).get("metadata") or {}).get("labels") or {}
    selector = settings.get("managedJobsNamespaceSelector") or {
        "matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", where]}
        ]
    }
    # Every namespace has this label; without the right to read the namespace no other labels are known.
    if labels and not selects(selector, labels):
        yield Finding(
            "Kueue's namespaces",
            False,
            f"managedJobsNamespaceSelector leaves {namespace()} out: stages would start without waiting in the queue",
            f"let it select {namespace()} in ConfigMap {name} of namespace {where}, and restart Kueue's controller",
        )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a Kubernetes label selector selects an object with these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or ():
        key, values = each["key"], each.get("values") or ()
        fits = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not fits[each["operator"]]:
            return False
    return True


def _namespace_of(deployments: list[Any], program: Program, usual: str) -> str:
    installed = find(deployments, program)
    return usual if installed is None else installed.namespace


def _document(text: str | None, name: str) -> dict[str, Any]:
    try:
        read = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise ClusterError(f"ConfigMap {name} is not valid YAML: correct it") from error
    return read if isinstance(read, dict) else {}
