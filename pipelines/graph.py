"""The Kubeflow pipeline of a plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

from kfp import dsl

from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.surroundings import NODE
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.nodes import Plan, PlannedStage, task_name
from ngrpo_kfp.pipelines.post_training import NAME

COMPONENTS = {
    name: getattr(importlib.import_module(f"ngrpo_kfp.components.{name}.component"), name) for name in DECLARED
}
"""The component of each stage: the function that is called like it, in its folder."""


def kubeflow_pipeline(
    plan: Plan,
    configure: Callable[[dsl.PipelineTask, PlannedStage], None] = lambda task, node: None,
    description: str | None = None,
    name: str = NAME,
    at_exit: Callable[[], dsl.PipelineTask] | None = None,
) -> Any:
    """Build the pipeline that runs what a plan has to run.

    A node whose result is in the store is no task: whoever reads its artifact is told the reference to it. kfp's importer would do that
    with a pod, whose launcher looks for the artifact with credentials and an address of its own. Nor is a node that does the same work as
    one before it: whoever reads its artifact reads the other's.

    Args:
        plan: The plan of the run.
        configure: Gives the task of a node what it needs beside its inputs where it runs.
        description: Text that goes with the pipeline.
        name: Name of the pipeline.
        at_exit: Makes the task that runs when all others have ended, however they did; none for no such task.

    Returns:
        The pipeline as kfp can compile it, or run it when called.
    """

    @dsl.pipeline(name=name, description=description)
    def pipeline():  # type: ignore[no-untyped-def]  # kfp takes an annotation for the declaration of an output
        made: dict[str, Any] = {node.name: node.reference for node in plan if node.cached}
        with nullcontext() if at_exit is None else dsl.ExitHandler(at_exit()):
            for node in plan.to_run:
                task = _task(node, {name: made[source.worker.name] for name, source in node.inputs.items()})
                configure(task, node)
                made[node.name] = task.outputs["artifact"]

    return pipeline


def without_templates(text: str) -> str:
    """Return a text of JSON in which nothing looks like a template: Argo and Kubeflow would fill in what stands in double braces.

    Settings hold texts of the user, programs among them.
    """
    return text.replace("{{", r"{\u007b")


def _task(node: PlannedStage, inputs: Mapping[str, Any]) -> dsl.PipelineTask:
    """Return the task of a node.

    Args:
        node: The node.
        inputs: By name of the input, a reference or the output of another task.
    """
    known = {f"{name}_known": made.to_json() for name, made in inputs.items() if isinstance(made, Reference)}
    made_here = {name: made for name, made in inputs.items() if not isinstance(made, Reference)}
    named = node.name != node.stage
    component = copy(COMPONENTS[node.stage])
    if named:
        # kfp calls a task like its component, and a second one by a number that changes with what is cached.
        component.component_spec = replace(component.component_spec, name=task_name(node.name))
    task = component(
        config=without_templates(node.config), key=node.key, code_version=node.code_version, **made_here, **known
    )
    return task.set_display_name(node.name).set_env_variable(NODE, node.name) if named else task
