"""A registered version as a KServe `InferenceService`: the image of the GPU stages serves exactly the files of that version.

The storage address is that of the version itself, so moving an alias does not change it. The digest of the files is in the annotations
and in one of the model's names in the API, and the server starts only if the files match it (`ngrpo.storage.verified_start`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ngrpo.config import DeployConfig, RegisteredModel, RunConfig
from ngrpo.config.cluster import SCRATCH, ResourcesConfig
from ngrpo.errors import ConfigError
from ngrpo.section import slug
from ngrpo_kfp.components.serving.server_arguments import served_length, server_arguments

KSERVE = "/apis/serving.kserve.io/v1beta1"
SERVICES = KSERVE + "/namespaces/{namespace}/inferenceservices"
DIGEST = "ngrpo/model-digest"
"""Annotation: digest of the model's files."""
_STAGE = "benchmark_evaluation"
_MODELS = "/mnt/models"
"""Where KServe mounts the files."""
_PORT = 8080
_MINUTES_TO_LOAD = 60


def service_name(config: RunConfig | DeployConfig, model_name: str) -> str:
    """Return the name of the service of a registered model.

    Raises:
        ConfigError: The model's name is not valid for a service.
    """
    if config.deployment.name is not None:
        return config.deployment.name
    name = slug(model_name).lower().replace("_", "-").strip("-")
    if not name or not name[0].isalpha() or len(name) > 40:
        raise ConfigError(
            f"promotion.model_name={model_name!r}: no name of a service, which has at most 40 letters, digits and '-' and begins "
            "with a letter; set deployment.name"
        )
    return name


def require_servable(config: RunConfig | DeployConfig) -> None:
    """Refuse settings that cannot be served, before a model is trained.

    Raises:
        ConfigError: The evaluation has no GPUs or too few, or the model's name is not valid for a service.
    """
    needs, gpus = _needs(config), config.evaluation.vllm.tensor_parallel_size
    if not needs.gpus:
        raise ConfigError(
            f"resources.{_STAGE}.gpus=0: a model is served by the image with vLLM, which is that of stages with GPUs; set it to {gpus}"
        )
    config.cluster.require_room(_STAGE, needs.model_copy(update={"gpus": gpus}))
    service_name(config, config.promotion.model_name)


def inference_service(
    stored: RegisteredModel, config: RunConfig | DeployConfig, image: str, *, namespace: str, positions: int | None
) -> dict[str, Any]:
    """Return the manifest of a version's service.

    Args:
        stored: The version.
        config: Configuration of the run that trained it, with the settings of the cluster.
        image: Image of stages with GPUs, by digest.
        namespace: Namespace of the service.
        positions: The longest sequence of the model in tokens; None for no limit.

    Raises:
        ConfigError: See `require_servable`.
    """
    # Imported only now, because it imports torch.
    from ngrpo.evaluation.endpoint_names import digest_name

    require_servable(config)
    needs, gpus = _needs(config), config.evaluation.vllm.tensor_parallel_size
    arguments = server_arguments(
        config,
        model=_MODELS,
        names=[stored.name, digest_name(stored.digest)],
        host="0.0.0.0",
        port=_PORT,
        length=served_length(config, positions),
        on_cpu=False,
    )
    cluster = config.cluster
    resources = {"cpu": str(needs.cpus), "memory": f"{needs.memory_gib}Gi", cluster.gpu.resource: str(gpus)}
    container = {
        "name": "kserve-container",
        "image": image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": ["python", "-m", "ngrpo.storage.verified_start", _MODELS, stored.digest],
        "args": [argument.replace("$", "$$") for argument in arguments],  # Kubernetes would expand `$(NAME)`
        "env": [
            # For a custom container, KServe downloads the files from this address.
            {"name": "STORAGE_URI", "value": stored.location},
            {"name": "HOME", "value": SCRATCH},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        ],
        "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "startupProbe": _probe(failures=_MINUTES_TO_LOAD * 6),
        "readinessProbe": _probe(failures=3),
        "livenessProbe": _probe(failures=6),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    predictor: dict[str, Any] = {
        "minReplicas": 1,
        "maxReplicas": 1,
        "nodeSelector": cluster.node_selector | cluster.gpu.node_selector,
        "tolerations": [
            each.model_dump(exclude_none=True) for each in (*cluster.tolerations, *cluster.gpu.tolerations)
        ],
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "securityContext": {
            "runAsUser": cluster.run_as_user,
            "runAsGroup": cluster.run_as_group,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{cluster.scratch_of(needs)}Gi"}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{cluster.gpu.shared_memory_gib}Gi"},
            },
        ],
        "containers": [container],
    }
    account = config.deployment.service_account or cluster.service_account
    if account is not None:
        predictor["serviceAccountName"] = account
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(config, stored.name),
            "namespace": namespace,
            "labels": dict(cluster.labels),  # no queue: a service never ends, so it must not queue with jobs
            "annotations": {
                DIGEST: stored.digest,
                "ngrpo/model": f"{stored.name}/{stored.version}",
                "ngrpo/preset": config.preset,
            },
        },
        "spec": {"predictor": predictor},
    }


def stored_positions(stored: RegisteredModel) -> int | None:
    """Return the longest sequence of a stored model in tokens; None for no limit.

    Raises:
        ConfigError: Its config.json is gone.
        DataError: It is damaged.
        StoreError: The object store cannot be reached.
    """
    from ngrpo.data.model_directory import read_config
    from ngrpo.data.vllm_service import served_positions
    from ngrpo.storage.objects import ObjectStore

    data = ObjectStore(stored.location).get_bytes("config.json")
    if data is None:
        raise ConfigError(f"{stored.location}: no config.json there; restore the files of the version, or name another")
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_bytes(data)
        return served_positions(read_config(Path(directory), stored.location))


def _needs(config: RunConfig | DeployConfig) -> ResourcesConfig:
    return config.resources.get(_STAGE, ResourcesConfig())


def _probe(*, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": _PORT},
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
