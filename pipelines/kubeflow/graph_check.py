"""A check of compiled pipelines for dangling references, which neither kfp's compiler nor its loader finds.

Names are those of the pipeline specification (`pipeline_spec.proto`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ngrpo.errors import NGRPOError

Spec = Mapping[str, Any]

_UNNAMED_OUTPUT = "Output"
_BY_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_CONDITION_INPUT = re.compile(r"inputs\.(?:parameter_values|parameters)\['([^']+)'\]")
_ANY_ARTIFACT = "system.Artifact"
_CONSTANTS = {str: "STRING", bool: "BOOLEAN", list: "LIST", dict: "STRUCT"}
"""Types of constants by their YAML type. Numbers are missing, because they are all doubles there."""


class GraphError(NGRPOError):
    """A compiled pipeline is broken; the message has one line for each problem."""


def check_graph(spec: Spec, platform: Spec) -> None:
    """Refuse a compiled pipeline that could not run as written.

    Every component, executor, task, parameter and artifact that is referred to must exist, connected inputs and outputs must have the
    same type, tasks must not wait for one another in a cycle, no two may make the same result, and a condition must read an unnamed
    output, because on a named one it is silently false. Images must be named by digest, and no stage may install packages when it starts.

    Args:
        spec: The pipeline.
        platform: The platform specification.

    Raises:
        GraphError: It is broken; the message names every problem.
    """
    executors = spec.get("deploymentSpec", {}).get("executors", {})
    components = spec.get("components", {})
    problems = [*_executors(executors), *_platform(platform, executors), *_dag("root", spec["root"], components)]
    for name, component in components.items():
        if "dag" in component:
            problems += _dag(name, component, components)
        elif component.get("executorLabel") not in executors:
            problems.append(f"component {name}: there is no executor {component.get('executorLabel')!r}")
    if problems:
        raise GraphError("\n".join(f"compiled pipeline: {problem}" for problem in problems))


def _executors(executors: Spec) -> Iterator[str]:
    for name, executor in executors.items():
        container = executor.get("container")
        if container is None:
            continue
        if not _BY_DIGEST.fullmatch(container.get("image", "")):
            yield f"executor {name}: image {container.get('image')!r} is not named by its digest"
        if "pip install" in " ".join(container.get("command", ())):
            yield f"executor {name}: installs packages when it starts"


def _platform(platform: Spec, executors: Spec) -> Iterator[str]:
    for kind, settings in platform.get("platforms", {}).items():
        for name in settings.get("deploymentSpec", {}).get("executors", {}):
            if name not in executors:
                yield f"platform {kind}: there is no executor {name!r}"


def _dag(where: str, component: Spec, components: Spec) -> list[str]:
    """Return the problems of the tasks of a component."""
    tasks = component["dag"].get("tasks", {})
    problems = []
    for name, task in tasks.items():
        called = components.get(task.get("componentRef", {}).get("name"))
        if called is None:
            problems.append(f"{where}: task {name}: there is no component {task.get('componentRef', {}).get('name')!r}")
            continue
        for kind in ("parameters", "artifacts"):
            problems += [
                f"{where}: task {name}: {problem}"
                for problem in _inputs(kind, task, called, component, tasks, components)
            ]
        problems += [f"{where}: task {name}: {problem}" for problem in _condition(task)]
        problems += [
            f"{where}: task {name}: waits for {other!r}, and there is no such task"
            for other in task.get("dependentTasks", ())
            if other not in tasks
        ]
    return [*problems, *_cycle(where, tasks), *_same_result(where, tasks)]


def _inputs(kind: str, task: Spec, called: Spec, component: Spec, tasks: Spec, components: Spec) -> Iterator[str]:
    """Compare the inputs that a task is given with those that its component declares. `kind`: parameters or artifacts."""
    given = task.get("inputs", {}).get(kind, {})
    declared = called.get("inputDefinitions", {}).get(kind, {})
    for name, definition in declared.items():
        if name in given or "defaultValue" in definition:
            continue
        known = f"{name}_known" in task.get("inputs", {}).get("parameters", {})
        if not definition.get("isOptional") or (kind == "artifacts" and not known):
            yield f"input {name!r} of its component is not given"
    for name, source in given.items():
        if name not in declared:
            yield f"its component has no input {name!r} among its {kind}"
            continue
        wanted = _type(declared[name])
        found, problem = _source(kind, source, component, tasks, components)
        if problem is not None:
            yield f"input {name!r}: {problem}"
        elif found not in (wanted, None) and wanted != _ANY_ARTIFACT:
            yield f"input {name!r} is a {wanted} but is given a {found}"


def _source(kind: str, source: Spec, component: Spec, tasks: Spec, components: Spec) -> tuple[str | None, str | None]:
    """Return the type of an input's source, None if it has none, and the problem with the source, if there is one."""
    singular = kind.removesuffix("s")
    title = singular.capitalize()
    if f"taskOutput{title}" in source:
        output = source[f"taskOutput{title}"]
        producer, key = output.get("producerTask"), output.get(f"output{title}Key")
        if producer not in tasks:
            return None, f"comes from {producer!r}, and there is no such task"
        made_by = components.get(tasks[producer].get("componentRef", {}).get("name"), {})
        outputs = made_by.get("outputDefinitions", {}).get(kind, {})
        return (_type(outputs[key]), None) if key in outputs else (None, f"{producer} has no {singular} {key!r}")
    if f"componentInput{title}" in source:
        key = source[f"componentInput{title}"]
        inputs = component.get("inputDefinitions", {}).get(kind, {})
        return (_type(inputs[key]), None) if key in inputs else (None, f"the component has no {singular} {key!r}")
    if kind == "parameters" and "taskFinalStatus" in source:  # the status input of an exit task
        producer = source["taskFinalStatus"].get("producerTask")
        return (
            ("TASK_FINAL_STATUS", None)
            if producer in tasks
            else (None, f"comes from {producer!r}, and there is no such task")
        )
    if kind == "parameters" and "constant" in source.get("runtimeValue", {}):
        return _CONSTANTS.get(type(source["runtimeValue"]["constant"])), None
    return None, f"unknown source {sorted(source)}"


def _type(definition: Spec) -> str:
    """Return the type of a declared parameter or artifact."""
    if "artifactType" in definition:
        artifact = definition["artifactType"]
        return str(artifact.get("schemaTitle") or artifact.get("instanceSchema"))
    return str(definition["parameterType"])


def _condition(task: Spec) -> Iterator[str]:
    condition = task.get("triggerPolicy", {}).get("condition")
    if condition is None:
        return
    parameters = task.get("inputs", {}).get("parameters", {})
    for name in _CONDITION_INPUT.findall(condition):
        source = parameters.get(name)
        if source is None:
            yield f"its condition reads {name!r}, which it is not given"
        elif source.get("taskOutputParameter", {}).get("outputParameterKey", _UNNAMED_OUTPUT) != _UNNAMED_OUTPUT:
            key = source["taskOutputParameter"]["outputParameterKey"]
            yield f"its condition reads the named output {key!r}, which is always false: return one unnamed value"


def _cycle(where: str, tasks: Spec) -> Iterator[str]:
    waits = {name: {other for other in _upstream(task) if other in tasks} for name, task in tasks.items()}
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        yield f"{where}: tasks wait for one another: {' → '.join(reversed(error.args[1]))}"


def _same_result(where: str, tasks: Spec) -> Iterator[str]:
    """Find tasks with the same key: they would write the same artifact, and resume from the same checkpoint, at the same time."""
    first: dict[str, str] = {}
    for name, task in tasks.items():
        parameter = task.get("inputs", {}).get("parameters", {}).get("key", {})
        key = str(parameter.get("runtimeValue", {}).get("constant", ""))
        # The id of the run is the key of the only task of each stage that is never cached.
        if key and not key.startswith("{{") and first.setdefault(key, name) != name:
            yield f"{where}: task {name}: works on the result of {first[key]}: plan them as one"


def _upstream(task: Spec) -> Iterator[str]:
    """Return the tasks that a task waits for."""
    yield from task.get("dependentTasks", ())
    for title in ("Parameter", "Artifact"):
        for source in task.get("inputs", {}).get(f"{title.lower()}s", {}).values():
            if f"taskOutput{title}" in source:
                yield source[f"taskOutput{title}"].get("producerTask")
