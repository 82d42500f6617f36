"""The nodes of a run: their names, their plan, and the records of earlier runs.

A node is a place in the pipeline: the stage that runs there, with its settings there. It is named like its stage, or
`<stage>.<label>.<label>` if the stage occurs several times. The name is also used for files, MLflow runs and the value of a Kubernetes
label; `task_name` gives the name of the Kubeflow task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.content import StageSettings
from ngrpo_kfp.pipelines.post_training import StageTracer, post_training

_LABEL = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DRIVER = "driver"
"""Kubeflow puts a task `<task>-driver` before each task."""
_LONGEST_NAME = 63
"""Most characters of the value of a Kubernetes label."""


@dataclass(frozen=True)
class PlannedStage:
    """The plan of a node."""

    name: str
    """Name of the node."""
    stage: str
    """Name of the stage that it runs."""
    key: str
    """Key of its result."""
    base_key: str
    """Its key without a rerun token."""
    settings: StageSettings
    """Its settings, as the stage receives them and as they are in its key, and the content of the copies that it reads."""
    code_version: str
    sources: Mapping[str, str]
    """Hash of each source file behind `code_version`."""
    libraries: Mapping[str, str]
    """Version of each library that decides its result (`ngrpo.stages.libraries`)."""
    inputs: Mapping[str, PlannedStage]
    """The nodes whose artifacts it reads, by the input's name."""
    reference: Reference | None
    """Its result, if the store has a sound one."""
    damaged: Reference | None
    """Its result, if the store has a damaged one."""
    reasons: tuple[str, ...]
    """Why it has to run, or which node's result it takes; empty if its own is in the store."""
    same_as: PlannedStage | None = None
    """The first node of the run with the same key, which does the work once; this node takes its result."""

    @property
    def config(self) -> str:
        """Its settings as the stage receives them, as canonical JSON."""
        return self.settings.given

    @property
    def cached(self) -> bool:
        """Whether the store has its result, so that it need not run."""
        return self.reference is not None

    @property
    def worker(self) -> PlannedStage:
        """The node that makes the result: this one, or the one that does the same work before it."""
        return self.same_as or self


@dataclass(frozen=True)
class Plan:
    """All nodes in order."""

    nodes: Mapping[str, PlannedStage]

    def __iter__(self) -> Iterator[PlannedStage]:
        """Iterate over the nodes in order."""
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> PlannedStage:
        """Return a node by name."""
        return self.nodes[name]

    def find(self, name: str) -> PlannedStage:
        """Return the node of a name; see `find_node`."""
        return self[find_node(name, self.nodes)]

    def part(self, names: Iterable[str], made: Mapping[str, Reference]) -> Plan:
        """Return some nodes as a plan of their own.

        Args:
            names: Names of the nodes, each after the nodes that it reads from.
            made: Results made after the plan, by key: their nodes count as cached.
        """
        nodes: dict[str, PlannedStage] = {}
        first: dict[str, PlannedStage] = {}
        for name in names:
            node = self[name]
            reference = node.reference or made.get(node.key)
            nodes[name] = replace(
                node,
                inputs={title: nodes[source.name] for title, source in node.inputs.items()},
                reference=reference,
                same_as=None if reference is not None else first.get(node.key),
                reasons=() if reference is not None else node.worker.reasons,
            )
            first.setdefault(node.key, nodes[name])
        return Plan(nodes)

    @property
    def to_run(self) -> list[PlannedStage]:
        """The nodes that have to run, in order."""
        return [node for node in self if not node.cached and node.same_as is None]

    @property
    def stages_to_run(self) -> list[str]:
        """The stages of those nodes, each once."""
        return list(dict.fromkeys(node.stage for node in self.to_run))


@dataclass(frozen=True)
class History:
    """Records of an earlier run; empty for a first run."""

    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`plan_record` of each node."""
    finished: frozenset[str] = frozenset()
    """Nodes that had a result when the run ended."""


def node_name(stage: str, labels: Sequence[str], taken: Collection[str]) -> str:
    """Return the name of a node.

    Args:
        stage: The stage that it runs.
        labels: Distinguish it from other nodes of that stage.
        taken: Names of the other nodes.

    Raises:
        ConfigError: A label has characters that files, Kubernetes or Kubeflow do not allow, or the name is taken or too long.
    """
    name = ".".join([stage, *labels])
    for label in labels:
        problem = label_problem(label)
        if problem is not None:
            raise ConfigError(f"node {name}: label {label!r}: {problem}")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"node {name}: its name has more than {_LONGEST_NAME} characters: shorten the labels")
    for other in taken:
        if task_name(other) == task_name(name):
            raise ConfigError(f"node {name}: the pipeline has a node {other} already: give one of them another label")
    return name


def label_problem(label: str) -> str | None:
    """Return why files, Kubernetes or Kubeflow do not allow a label; none if they do."""
    if _LABEL.fullmatch(label) is not None and label.rpartition("-")[2] != _DRIVER:
        return None
    return (
        f"a label has lower-case letters and digits only, `-` between them, and does not end in {_DRIVER!r}, a word of Kubeflow's: "
        "choose another"
    )


def stage_of(node: str) -> str:
    """Return the stage that a node runs, by the node's name."""
    return node.partition(".")[0]


def task_name(node: str) -> str:
    """Return the name of a node's Kubeflow task, in which kfp replaces all other characters by dashes."""
    return node.replace("_", "-").replace(".", "-")


def node_of_task(task: str, display_name: str) -> str:
    """Return the node of a Kubeflow task.

    Args:
        task: Name of the task.
        display_name: `taskInfo.name` of the task. It has the name of a node with labels, whose dots the task's name has lost.
    """
    return display_name if "." in display_name else task.replace("-", "_")


def of_stage(stage: str, nodes: Iterable[str]) -> list[str]:
    """Return those nodes that run a stage."""
    return [node for node in nodes if stage_of(node) == stage]


def find_node(name: str, nodes: Collection[str]) -> str:
    """Return the node that a name refers to.

    Args:
        name: Name of a node, or of a stage that only one node runs.
        nodes: Names of all nodes.

    Raises:
        ConfigError: There is no such node, or there are several.
    """
    found = [name] if name in nodes else of_stage(name, nodes)
    if not found:
        raise ConfigError(f"{name!r} is not a node of the pipeline: name one of {', '.join(nodes)}")
    if len(found) > 1:
        raise ConfigError(f"{name!r} runs several times: name one of {', '.join(found)}")
    return found[0]


def names_of(pipeline: Callable[[StageTracer], None] = post_training, also: Collection[str] = ()) -> list[str]:
    """Return the names of the nodes of a pipeline, in order, without planning it.

    Args:
        pipeline: The pipeline to trace, as of `make_plan`.
        also: Optional stages that it has in addition to those of every run.
    """
    names: list[str] = []

    def trace(
        stage: str,
        /,
        *labels: str,
        settings: Mapping[str, Any] | None = None,
        config: RunConfig | None = None,
        **inputs: Any,
    ) -> None:
        if stage in STAGES or stage in also:
            names.append(node_name(stage, labels, names))

    pipeline(trace)
    return names
