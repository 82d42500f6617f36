"""The Kubeflow pipeline of a plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from kfp import dsl

from ngrpo.stages.declarations import STAGES
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.nodes import Plan, PlannedStage
from ngrpo_kfp.pipelines.post_training import NAME, post_training

COMPONENTS = {name: getattr(importlib.import_module(f"ngrpo_kfp.components.{name}.component"), name) for name in STAGES}
"""The component of each stage: the function that is called like it, in its folder."""


def kubeflow_pipeline(
    plan: Plan,
    configure: Callable[[dsl.PipelineTask, PlannedStage], None] = lambda task, stage: None,
    description: str | None = None,
) -> Any:
    """Build the pipeline that runs what a plan has to run.

    A stage whose result is in the store is no task: whoever reads its artifact is told the reference to it. kfp's importer would do that
    with a pod, whose launcher looks for the artifact with credentials and an address of its own.

    Args:
        plan: The plan of the run.
        configure: Gives the task of a stage what it needs beside its inputs where it runs.
        description: Text that goes with the pipeline.

    Returns:
        The pipeline as kfp can compile it, or run it when called.
    """

    def trace(name: str, /, **inputs: Any) -> Any:
        stage = plan[name]
        if stage.reference is not None:
            return stage.reference
        known = {f"{each}_known": made.to_json() for each, made in inputs.items() if isinstance(made, Reference)}
        made_here = {each: made for each, made in inputs.items() if not isinstance(made, Reference)}
        settings = {"config": stage.config, "key": stage.key, "code_version": stage.code_version}
        task = COMPONENTS[name](**settings, **made_here, **known)
        configure(task, stage)
        return task.outputs["artifact"]

    @dsl.pipeline(name=NAME, description=description)
    def pipeline():  # type: ignore[no-untyped-def]  # kfp takes an annotation for the declaration of an output
        post_training(trace)

    return pipeline
