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
"""The component of each stage: the function of the same name, in the stage's folder."""


def kubeflow_pipeline(
    plan: Plan,
    configure: Callable[[dsl.PipelineTask, PlannedStage], None] = lambda task, node: None,
    description: str | None = None,
    name: str = NAME,
    at_exit: Callable[[], dsl.PipelineTask] | None = None,
) -> Any:
    """Build the pipeline of the nodes that a plan has to run.

    A node with a result in the store becomes no task: tasks that read its artifact get the reference as a constant. kfp's importer would
    start a pod for that, whose launcher looks for the artifact with its own credentials and address. A node that repeats the work of an
    earlier one becomes no task either: tasks that read its artifact read the other's.

    Args:
        plan: The plan of the run.
        configure: Configures the task of a node for the place where it runs.
        description: Description of the pipeline.
        name: Name of the pipeline.
        at_exit: Makes the task that runs after all others have ended, successfully or not; None for no such task.

    Returns:
        The pipeline, which kfp can compile, or run when it is called.
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
    """Return a JSON text without double braces, which Argo and Kubeflow would expand as templates.

    Settings contain texts of the user, including programs.
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
        # kfp names a task like its component, and adds to a second one a number that depends on which nodes are cached.
        component.component_spec = replace(component.component_spec, name=task_name(node.name))
    task = component(
        config=without_templates(node.config), key=node.key, code_version=node.code_version, **made_here, **known
    )
    return task.set_display_name(node.name).set_env_variable(NODE, node.name) if named else task
