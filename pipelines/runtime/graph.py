"""The Kubeflow pipeline of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp import dsl

from ngrpo_kfp.components.benchmark_evaluation.component import benchmark_evaluation
from ngrpo_kfp.components.model_promotion.component import model_promotion
from ngrpo_kfp.components.neighbor_index.component import neighbor_index
from ngrpo_kfp.components.ngrpo_training.component import ngrpo_training
from ngrpo_kfp.components.prepare_data.component import prepare_data
from ngrpo_kfp.components.sft_warm_start.component import sft_warm_start
from ngrpo_kfp.pipelines.plan import Plan, PlannedStage
from ngrpo_kfp.pipelines.post_training import NAME, post_training

COMPONENTS = {
    "prepare_data": prepare_data,
    "neighbor_index": neighbor_index,
    "sft_warm_start": sft_warm_start,
    "ngrpo_training": ngrpo_training,
    "benchmark_evaluation": benchmark_evaluation,
    "model_promotion": model_promotion,
}

ARTIFACT_CLASSES: dict[str, type[dsl.Artifact]] = {
    "prepare_data": dsl.Dataset,
    "neighbor_index": dsl.Artifact,
    "sft_warm_start": dsl.Model,
    "ngrpo_training": dsl.Model,
    "benchmark_evaluation": dsl.Artifact,
}


def kubeflow_pipeline(
    plan: Plan,
    reference_uri: Callable[[PlannedStage], str],
    configure: Callable[[dsl.PipelineTask, PlannedStage], None] = lambda task, stage: None,
    description: str | None = None,
) -> Any:
    """Build the pipeline that runs what a plan has to run.

    A stage whose result is in the store is not a task: where its artifact is read, the reference to it is imported.

    Args:
        plan: The plan of the run.
        reference_uri: Where the reference file of a cached stage is, as the runtime's importer can read it.
        configure: Gives the task of a stage what it needs beside its inputs where it runs.
        description: Text that goes with the pipeline.

    Returns:
        The pipeline as kfp can compile it, or run it when called.
    """
    read = {source.name for stage in plan.to_run for source in stage.inputs.values()}

    def trace(name: str, /, **inputs: Any) -> Any:
        stage = plan[name]
        if stage.cached and name not in read:
            return None
        if stage.cached:
            task = dsl.importer(artifact_uri=reference_uri(stage), artifact_class=ARTIFACT_CLASSES[name])
            return task.output
        task = COMPONENTS[name](config=stage.config, key=stage.key, code_version=stage.code_version, **inputs)
        configure(task, stage)
        return task.outputs["artifact"]

    @dsl.pipeline(name=NAME, description=description)
    def pipeline():  # type: ignore[no-untyped-def]  # kfp takes an annotation for the declaration of an output
        post_training(trace)

    return pipeline
