"""The way to Kubernetes itself, for what Kubeflow's API does not tell: the pods of a stage, and whether secrets are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import client, config
from rich.console import Console
from urllib3.exceptions import HTTPError

from ngrpo.cluster import ClusterConfig
from ngrpo_kfp.pipelines.runtime.kubeflow import ClusterError, namespace
from ngrpo_kfp.pipelines.runtime.pods import RUN_LABEL, STAGE_LABEL

_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer


class KubernetesError(ClusterError):
    """Kubernetes cannot be asked: there is no way to it, it does not answer, or it refuses."""


def last_pod(run_id: str, stage: str) -> Any:
    """Return the pod of a stage's last try, a `V1Pod`.

    Args:
        run_id: The run.
        stage: Name of the stage.

    Raises:
        ClusterError: There is no such pod, or Kubernetes cannot be asked.
    """
    with _asked() as api:
        pods = api.list_namespaced_pod(
            namespace(), label_selector=f"{RUN_LABEL}={run_id},{STAGE_LABEL}={stage}", _request_timeout=_TIMEOUT
        ).items
    if not pods:
        raise ClusterError(
            f"run {run_id}: no pod of {stage} in namespace {namespace()}: it has not started, was cached, or was cleaned away"
        )
    return max(pods, key=lambda pod: pod.metadata.creation_timestamp)


def log_lines(pod: Any) -> Iterator[str]:
    """Yield the lines that a stage's pod has printed.

    Raises:
        KubernetesError: Kubernetes cannot be asked.
    """
    with _asked() as api:
        log = api.read_namespaced_pod_log(
            pod.metadata.name, namespace(), container="main", _preload_content=False, _request_timeout=_TIMEOUT
        )
        for line in log:
            yield line.decode(errors="replace").rstrip("\n")


def require_secrets(cluster: ClusterConfig, console: Console) -> None:
    """Refuse settings that name a secret which is not there: their pods would wait for it until their time is over.

    Who may submit runs need not have a way to Kubernetes, or the right to read secrets. That is said then, and no more.

    Args:
        cluster: Its `secrets` are looked up in the namespace of the runs.
        console: Where it is said.

    Raises:
        ClusterError: Names the first secret, or key of one, that is missing.
    """
    try:
        for name, variables in cluster.secrets.items():
            _require_secret(f"secrets.{name}", name, sorted(set(variables.values())))
        if cluster.nodes > 1 and cluster.training_token is not None:
            _require_secret("training_token", cluster.training_token, ["ca.crt", "namespace", "token"])
    except KubernetesError as error:
        console.print(f"secrets  not checked: {error}", soft_wrap=True)


def _require_secret(setting: str, name: str, keys: list[str]) -> None:
    missing = keys
    what = f"there is no secret {name}"
    try:
        with _asked() as api:
            there = api.read_namespaced_secret(name, namespace(), _request_timeout=_TIMEOUT).data or {}
        missing = [key for key in keys if key not in there]
        what = f"the secret has no key {', '.join(missing)}"
    except KubernetesError as error:
        if getattr(error.__cause__, "status", None) != 404:
            raise
    if missing:
        literals = " ".join(f"--from-literal={key}=…" for key in missing)
        cure = f"`kubectl -n {namespace()} create secret generic {name} {literals}`"
        if setting == "training_token":
            cure = "apply k8s/overlays/gpu, which has it"
        raise ClusterError(
            f"cluster.{setting}: {what} in namespace {namespace()} of the cluster that KUBECONFIG names, and pods would wait for it: "
            f"{cure}, or correct the settings"
        )


@contextmanager
def _asked() -> Iterator[client.CoreV1Api]:
    """Provide the API, and turn what it complains about into one line."""
    try:
        config.load_config()
    except config.ConfigException as error:
        raise KubernetesError(f"there is no way to Kubernetes ({error}): set KUBECONFIG") from error
    try:
        yield client.CoreV1Api()
    except client.ApiException as error:
        raise KubernetesError(
            f"Kubernetes refuses ({error.status} {_message(error)}): check KUBECONFIG and your rights in namespace {namespace()}"
        ) from error
    except HTTPError as error:
        raise KubernetesError(f"Kubernetes cannot be reached ({type(error).__name__}): check KUBECONFIG") from error


def _message(error: client.ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
