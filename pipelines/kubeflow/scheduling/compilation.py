"""Compile the pipeline of a schedule to Kubeflow's intermediate representation."""

from __future__ import annotations

import dataclasses

from kfp import dsl

from ngrpo.config import RunConfig
from ngrpo.stages.keys import config_json
from ngrpo_kfp.pipelines.graph import without_templates
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole, compiled
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_planner
from ngrpo_kfp.pipelines.kubeflow.scheduling.component import scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.wishes import Wishes
from ngrpo_kfp.pipelines.post_training import NAME


def compile_scheduled_run(config: RunConfig, images: Images, wishes: Wishes) -> str:
    """Compile the pipeline of a schedule: one task, which plans and submits the run of the day.

    Args:
        config: Configuration of the runs.
        images: Where images are looked up.
        wishes: What is decided when the run starts, besides the plan.

    Raises:
        ConfigError: The run of the day would be refused, or the address of Kubeflow's API is not set for pods.
        GraphError: The compiled graph is broken.
    """
    compile_whole(config, images)  # raises now what the run of the day would be refused for

    told = without_templates(config_json(config))

    @dsl.pipeline(name=f"{NAME}-scheduled", description=told)
    def pipeline():  # type: ignore[no-untyped-def]  # kfp takes an annotation for the declaration of an output
        task = scheduled_run(
            config=told, images=images.text, key=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **dataclasses.asdict(wishes)
        )
        configure_planner(task, "scheduled_run", config, images)
        task.set_caching_options(False)

    return compiled(pipeline)
