"""What `ngrpo serve --cluster` and `ngrpo deploy` do: the service of a registered version, written or applied."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from ngrpo.config import RegisteredModel, RunConfig, validate
from ngrpo.config.cluster import ClusterConfig
from ngrpo.config.reading import override
from ngrpo.contracts.evaluation import EVALUATION, Evaluation, parse_evaluation, read_evaluation
from ngrpo.errors import ConfigError, NGRPOError, TrackingError
from ngrpo.evaluation.equivalence import Equivalence, equivalent
from ngrpo.notifications.events import deployed
from ngrpo.notifications.reasons import reason_of
from ngrpo.notifications.webhooks import announce
from ngrpo.report.phases import phase, standard_error
from ngrpo.signing.required import require_verified_version
from ngrpo.stages.deploy import differences_of
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo_kfp.components.serving.deployment import deploy
from ngrpo_kfp.components.serving.inference_service import inference_service, stored_positions
from ngrpo_kfp.pipelines.cli.options import naming_model
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.local.measuring import measure
from ngrpo_kfp.pipelines.local.named_model import latest_configuration, looked_up_settings
from ngrpo_kfp.pipelines.local.required_key import required_key
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.measured_model import model_source, source_by_name


def require_registered(what: str) -> None:
    """Refuse a name that cannot be a registered version, before anything is started.

    Args:
        what: `champion`, or the number of a version.

    Raises:
        ConfigError: It is neither.
    """
    try:
        registered = not source_by_name(what)
    except NGRPOError:
        registered = False
    if not registered:
        raise ConfigError(
            f"model {what!r}: a cluster serves what is registered; name champion, or the number of a version (`ngrpo history`)"
        )


def deployed_configuration(
    what: str, model_name: str | None, workspace: Workspace, cluster: ClusterConfig
) -> RunConfig:
    """Return the configuration of the run that made a version, with a cluster. If no run here made it, warn and use that of the latest run.

    Args:
        what: `champion`, or the number of a version.
        model_name: The registered model; by default that of the latest run.
        workspace: Where the runs are; also object storage and tracking, unless the environment names others.
        cluster: Settings of the cluster.

    Raises:
        ConfigError: There is no run.
        TrackingError: The registry cannot be reached.
    """
    latest = latest_configuration(workspace, model_name)
    model_name = model_name or latest.promotion.model_name
    own = looked_up_settings(what, model_name, workspace)
    if own is None:
        print(f"model {what}: no run here made it, so the settings of the latest run are used", file=sys.stderr)
    config = latest if own is None else own.config
    signing = required_key(own, model_name, workspace).signing
    config = override(config, [naming_model(model_name)])  # a run of another model may have made the same files
    return config.model_copy(update={"cluster": cluster, "signing": signing})


def print_service(what: str, config: RunConfig, images: Images, workspace: Workspace) -> None:
    """Print the service of a version as YAML.

    Args:
        what: `champion`, or the number of a version.
        config: Configuration of the run that trained it, with the cluster.
        images: Images by digest.
        workspace: Where object storage and tracking are, unless the environment names others.

    Raises:
        ConfigError: The configuration does not allow serving it.
        TrackingError: There is no such version, or its files are gone.
        StoreError: The object store cannot be reached.
    """
    with phase(standard_error(), "looking at the version"), services(workspace) as around:
        stored = _stored(what, config, around.store_uri)
        print(yaml.safe_dump(_service(stored, config, images), sort_keys=False), end="")


def deploy_version(what: str, config: RunConfig, images: Images, workspace: Workspace, console: Console) -> bool:
    """Deploy a version, evaluate it through its endpoint, and keep the deployment where both evaluations are equal.

    Args:
        what: See `print_service`, also for the other arguments.
        config: See `what`.
        images: See `what`.
        workspace: See `what`.
        console: Where progress and decision are shown.

    Returns:
        Whether the deployment was kept.

    Raises:
        NGRPOError: See `print_service`; or the cluster refuses, the service does not become ready, or the evaluation fails. The service
            is then as it was before.
    """
    with phase(console, "looking at the version"), services(workspace) as around:
        stored = _stored(what, config, around.store_uri)
        manifest = _service(stored, config, images)
        promoted = _evaluation(stored)

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True)

    def evaluate(url: str) -> Evaluation:
        waiting.end()  # the evaluation shows its own progress
        served = override(config, [f'evaluation.endpoint.url="{url}"'])
        directory = measure(served, str(stored.version), workspace, console)
        return read_evaluation(directory / EVALUATION, "deploy again")

    def decide(evaluation: Evaluation) -> Equivalence:
        settings = {"margin": config.deployment.margin, "confidence": config.evaluation.confidence}
        return equivalent(promoted, evaluation, **settings, seed=config.seed)

    about = stored.name, stored.version, None
    name, minutes = manifest["metadata"]["name"], config.deployment.ready_minutes
    try:
        with phase(console, f"waiting up to {minutes:g} min until service {name} is ready") as waiting:
            verdict = deploy(manifest, Kubernetes(), evaluate=evaluate, decide=decide, minutes=minutes, say=say)
    except NGRPOError as error:
        announce(config.notifications, deployed(*about, reason_of(error), {}, kept=False))
        raise
    kept = verdict.decision == "kept"
    say(f"deployment {verdict.decision}: {verdict.reason}")
    announce(config.notifications, deployed(*about, verdict.reason, differences_of(verdict), kept=kept))
    return kept


def _stored(what: str, config: RunConfig, store: str) -> RegisteredModel:
    model = validate(RegisteredModel, model_source(what, config))
    require_verified_version(model, config.signing, store, "which is to be deployed")
    return model


def _service(stored: RegisteredModel, config: RunConfig, images: Images) -> Mapping[str, Any]:
    image, positions = images.reference("gpu"), stored_positions(stored)
    return inference_service(stored, config, image, namespace=namespace(), positions=positions)


def _evaluation(stored: RegisteredModel) -> Evaluation:
    """Return the evaluation that a version is judged by."""
    registry = ModelRegistry(stored.name)
    version = registry.version(str(stored.version))
    found = None if version is None else registry.evaluation(version)
    where = f"model {stored.name}: version {stored.version}"
    if found is None:
        raise TrackingError(f"{where} has no evaluation to compare with; run the pipeline that made it again")
    return parse_evaluation(found, where=f"the evaluation of {where}", cure="run the pipeline that made it again")
