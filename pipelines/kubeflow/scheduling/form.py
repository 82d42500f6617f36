"""The run form: a pipeline with one task, which plans and submits a run. Users fill in its parameters in Kubeflow's UI."""

import json
from collections.abc import Mapping

from kfp import dsl
from rich.console import Console

from ngrpo.config import RunConfig
from ngrpo_kfp.pipelines.graph import without_templates
from ngrpo_kfp.pipelines.kubeflow.client import connect
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole, compiled
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_planner
from ngrpo_kfp.pipelines.kubeflow.scheduling.component import requested_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.recurring_runs import version_name, version_of

# kfp reads the types of the pipeline's parameters, so annotations must not be strings.

NAME = "ngrpo-form"
"""Name of the pipeline in Kubeflow."""


def compile_form(config: RunConfig, images: Images, own: Mapping[str, RunConfig]) -> str:
    """Compile the run form.

    Args:
        config: Defaults of the form, `preset` and `seed`; its section `cluster` applies to every run.
        images: Where images are looked up.
        own: Configurations, by name, of presets that are not in the package, because a pod could not read their files.

    Raises:
        ConfigError: A run with the form's defaults would be refused, or the address of Kubeflow's API is not set for pods.
        GraphError: The compiled graph is broken.
    """
    compile_whole(config, images)  # raises now what such a run would be refused for
    cluster = without_templates(json.dumps(config.cluster.model_dump(mode="json"), sort_keys=True))
    presets = without_templates(json.dumps({name: each.model_dump(mode="json") for name, each in own.items()}))

    @dsl.pipeline(name=NAME, description="Plan a run of ngrpo, submit what is left to do, and wait for its end.")  # type: ignore[untyped-decorator]
    def pipeline(preset: str = config.preset, seed: int = config.seed, overrides: list = [], base: str = ""):  # type: ignore[no-untyped-def, type-arg]  # noqa: B006  # kfp wants the value
        """Plan a run of ngrpo, submit what is left to do, and wait for its end.

        Args:
            preset: Name of a preset, for example tiny or paper-7b.
            seed: Seed of the run, a whole number from 0 on.
            overrides: Settings that override the preset: a JSON list of texts SECTION.FIELD=VALUE, as in ["training.steps=20"].
            base: champion to start from the champion of the day in place of the preset's base model; else empty.
        """
        task = requested_run(
            preset=preset,
            seed=seed,
            overrides=overrides,
            base=base,
            cluster=cluster,
            presets=presets,
            images=images.text,
            key=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        )
        configure_planner(task, "requested_run", config, images)
        task.set_caching_options(False)

    return compiled(pipeline)


def upload_form(text: str, preset: str, console: Console) -> None:
    """Upload the run form as the newest version of the pipeline `ngrpo-form`, unless it is already there.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    _, version = version_of(connect(), version_name(preset, text), text, NAME)
    console.print(f"form  pipeline {NAME}, version {version_name(preset, text)} ({version})", soft_wrap=True)
    console.print("next  Kubeflow's UI: Pipelines, ngrpo-form, Create run, and fill in the parameters", soft_wrap=True)
