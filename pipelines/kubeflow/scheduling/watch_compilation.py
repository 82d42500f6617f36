"""Compile the pipeline of a schedule that watches the champion, with one task, to Kubeflow's intermediate representation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError
from ngrpo.stages.keys import config_json
from ngrpo_kfp.pipelines.graph import without_templates
from ngrpo_kfp.pipelines.kubeflow.compilation import compiled
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_watch
from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_component import watch_champion
from ngrpo_kfp.pipelines.planning.content import require_in_pods
from ngrpo_kfp.pipelines.planning.signatures import require_key_in_pods
from ngrpo_kfp.pipelines.post_training import NAME

_NAME = f"{NAME}-watch"


def compile_watch(config: RunConfig, images: Images) -> str:
    """Compile the pipeline of a schedule whose task measures the served champion.

    Args:
        config: Configuration of the run that made the champion, with `watch`.
        images: Where images are looked up.

    Raises:
        ConfigError: There are no settings of the watch, pods cannot reach the endpoint, a source does not exist in pods, or the key
            that would sign a rollback does not.
        GraphError: The compiled graph is broken.
    """
    if config.watch is None:
        raise ConfigError(
            "watch: no settings; name the endpoint with --endpoint URL, as pods reach it (of `ngrpo schedule replace`: --set "
            "watch.endpoint.url=URL)"
        )
    if any(f"//{host}" in config.watch.endpoint.url for host in ("localhost", "127.", "[::1]")):
        raise ConfigError(
            f"watch.endpoint.url={config.watch.endpoint.url}: in a pod that is the pod itself; name the service as pods reach it"
        )
    require_in_pods(config)
    if config.watch.action == "rollback":
        require_key_in_pods(config)
    told = without_templates(config_json(config))

    @dsl.pipeline(name=_NAME, description=told)
    def pipeline():  # type: ignore[no-untyped-def]  # kfp takes an annotation for the declaration of an output
        task = watch_champion(config=told)
        configure_watch(task, config, images)
        task.set_caching_options(False)

    return compiled(pipeline)


def is_watch(spec: Mapping[str, Any]) -> bool:
    """Whether a pipeline in Kubeflow belongs to a schedule that watches the champion."""
    return bool(spec["pipelineInfo"]["name"] == _NAME)
