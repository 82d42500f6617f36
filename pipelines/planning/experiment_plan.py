"""The plan of an experiment: shared nodes, equal arms, and the remaining work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config.cluster import ResourcesConfig
from ngrpo.errors import ConfigError
from ngrpo.sizing.amounts import Amount
from ngrpo.sizing.durations import COMPUTED
from ngrpo.sizing.model_shape import ModelShape, model_shape
from ngrpo.sizing.stages import Needs, needs_of
from ngrpo_kfp.pipelines.planning.experiment import ArmRun, Experiment
from ngrpo_kfp.pipelines.planning.nodes import Plan, PlannedStage
from ngrpo_kfp.pipelines.planning.plan import plan_for_programs

_HOUR = 3600.0


@dataclass(frozen=True)
class ExperimentPlan:
    """The plan of all runs of an experiment."""

    experiment: Experiment
    plan: Plan
    nodes: Mapping[ArmRun, tuple[str, ...]]
    """Names of the nodes of each run, in order."""
    merged: Mapping[str, str]
    """Arms that equal another one, each with that arm: the two are merged."""

    @property
    def arms(self) -> list[str]:
        """The arms that are different, in order."""
        return [arm for arm in self.experiment.arms if arm not in self.merged]

    @property
    def notes(self) -> list[str]:
        """Notes on merged arms."""
        return [
            f"arm {arm}: the same settings as arm {other}, for every stage: they are one, reported as {other}"
            for arm, other in self.merged.items()
        ]

    def of(self, run: ArmRun, stage: str) -> PlannedStage | None:
        """Return the last node of a run that runs a stage, the one whose result stands for the run; none if it has none."""
        found = [name for name in self.nodes[run] if self.plan[name].stage == stage]
        return self.plan[found[-1]] if found else None

    def is_cached(self, run: ArmRun) -> bool:
        """Whether every result of a run is in the store."""
        return all(self.plan[name].cached for name in self.nodes[run])

    def of_arm(self, arm: str) -> Plan:
        """Return the nodes of an arm as a plan of its own."""
        return self.plan.part([name for run, names in self.nodes.items() if run.arm == arm for name in names], {})

    def users(self) -> dict[str, set[ArmRun]]:
        """Return the runs that have a node of each key, over different arms."""
        users: dict[str, set[ArmRun]] = {}
        for run, names in self.nodes.items():
            if run.arm not in self.merged:
                for name in names:
                    users.setdefault(self.plan[name].key, set()).add(run)
        return users

    def first_of(self, arm: str) -> list[PlannedStage]:
        """Return the first nodes that an arm shares with no other: all that follow from them are the arm's own.

        Raises:
            ConfigError: There is no such arm, or it is one with another.
        """
        if arm not in self.experiment.arms:
            raise ConfigError(f"--rerun {arm!r}: no such arm; name one of {', '.join(self.arms)}")
        if arm in self.merged:
            raise ConfigError(f"--rerun {arm!r}: it is one with arm {self.merged[arm]}: name that")
        own = {key for key, users in self.users().items() if {run.arm for run in users} == {arm}}
        return [
            node
            for run, names in self.nodes.items()
            if run.arm == arm
            for node in map(self.plan.__getitem__, names)
            if node.key in own
            and node.same_as is None
            and not any(source.key in own for source in node.inputs.values())
        ]


def planned_experiment(experiment: Experiment, runs: Iterable[ArmRun], plan: Plan) -> ExperimentPlan:
    """Return the plan of an experiment by runs and arms.

    Args:
        experiment: The experiment.
        runs: Its runs, in the order in which they were planned.
        plan: The plan of `experiment_pipeline`.
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for name in plan.nodes:
        names.setdefault(tuple(name.split(".")[-2:]), []).append(name)
    nodes = {run: tuple(names[run.labels]) for run in runs}
    keys: dict[str, list[str]] = {arm: [] for arm in experiment.arms}
    for run in sorted(nodes, key=lambda run: run.seed):
        keys[run.arm] += [plan[name].key for name in nodes[run]]
    merged: dict[str, str] = {}
    first: dict[tuple[str, ...], str] = {}
    # The baseline keeps its name: the comparison is with it.
    for arm in sorted(keys, key=lambda arm: arm != experiment.file.baseline):
        other = first.setdefault(tuple(keys[arm]), arm)
        if other != arm:
            merged[arm] = other
    return ExperimentPlan(experiment, plan, nodes, merged)


@dataclass(frozen=True)
class _Row:
    """Nodes of one stage that the same arms share."""

    stage: str
    arms: tuple[str, ...]
    nodes: list[PlannedStage]

    @property
    def to_run(self) -> int:
        return sum(not node.cached for node in self.nodes)


@dataclass(frozen=True)
class _Work:
    """The work of a row. Times and tokens are of all nodes that have to run."""

    row: _Row
    asked: ResourcesConfig
    gpu: Amount | None
    """Memory that the stage needs of each GPU; none if that is not known."""
    tokens: int
    """Most tokens that are generated."""
    seconds: float | None
    """Expected time; none if it is not known."""
    computed: bool
    """Whether the time is computed from the settings, not measured."""


def show_experiment(planned: ExperimentPlan, console: Console, seconds: Mapping[str, float]) -> None:
    """Print the work of an experiment: for each stage and arm, existing results, who shares them, and needed resources.

    Args:
        planned: The plan.
        console: Where it is shown.
        seconds: Duration of stages in earlier runs of this experiment, by key.
    """
    experiment = planned.experiment
    works = list(_works(planned, seconds))
    table = Table(
        title=f"Experiment {escape(experiment.name)}: {len(planned.arms)} arms x {len(experiment.file.seeds)} seeds"
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("of", overflow="fold")
    on_gpus = any(config.needs(node.stage).gpus for config in experiment.arms.values() for node in planned.plan)
    for column in ("results", "to run", *(("GPUs of each", "needed") if on_gpus else ()), "tokens", "time"):
        table.add_column(column, justify="right", overflow="fold")
    for work in works:
        row = work.row
        table.add_row(
            row.stage,
            "all arms" if len(row.arms) == len(planned.arms) > 1 else ", ".join(row.arms),
            str(len(row.nodes)),
            str(row.to_run) if row.to_run else "[green]cached",
            *((_asked(work.asked), _needed(work.asked, work.gpu)) if on_gpus else ()),
            f"{work.tokens / 1e6:,.1f} M" if work.tokens else "",
            "" if not row.to_run else "?" if work.seconds is None else f"{'~' * work.computed}{_hours(work.seconds)}",
        )
    console.print(table)
    for note in planned.notes:
        console.print(escape(note), soft_wrap=True)
    console.print(_total(works), soft_wrap=True)


def experiment_for_programs(planned: ExperimentPlan, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the plan of an experiment as `ngrpo experiment plan --json` prints it; see `show_experiment`."""
    experiment = planned.experiment
    return {
        "experiment": experiment.name,
        "preset": experiment.file.preset,
        "baseline": experiment.file.baseline,
        "benchmark": experiment.file.benchmark,
        "measure": experiment.file.measure,
        "seeds": list(experiment.file.seeds),
        "arms": planned.arms,
        "merged": dict(planned.merged),
        "work": [
            {
                "stage": work.row.stage,
                "arms": list(work.row.arms),
                "results": len(work.row.nodes),
                "to_run": work.row.to_run,
                "gpus": work.asked.gpus,
                "gpu_memory_gib": work.asked.gpu_memory_gib if work.asked.gpus else None,
                "gpu_memory_needed_gib": work.gpu.gib if work.asked.gpus and work.gpu is not None else None,
                "tokens": work.tokens,
                "seconds": None if work.seconds is None else round(work.seconds, 3),
                "seconds_are_computed": work.computed,
            }
            for work in _works(planned, seconds)
        ],
        "nodes": plan_for_programs(planned.plan),
    }


def _works(planned: ExperimentPlan, seconds: Mapping[str, float]) -> Iterator[_Work]:
    known = _Needs(planned.experiment)
    for row in _rows(planned):
        asked = planned.experiment.arms[row.arms[0]].needs(row.stage)
        needs = known.of(row.arms[0], row.stage)
        took, estimate = _took(row, seconds), None if needs is None else needs.duration
        each = took if took is not None or estimate is None else estimate.seconds
        yield _Work(
            row,
            asked,
            None if needs is None else needs.gpu,
            tokens=row.to_run * ((None if estimate is None else estimate.tokens) or 0),
            seconds=None if each is None else each * row.to_run,
            computed=took is None and estimate is not None and estimate.computed,
        )


def _total(works: Sequence[_Work]) -> str:
    """Return what is left to run, in one sentence."""
    left = sum(work.row.to_run for work in works)
    if not left:
        return "every result is in the store"
    timed = [work for work in works if work.seconds is not None]
    untimed = [work for work in works if work.seconds is None]
    unknown = sum(work.row.to_run for work in untimed)
    said = [f"{left} stages to run"]
    if unknown < left:
        total = sum(work.seconds or 0.0 for work in timed)
        gpu_hours = sum((work.seconds or 0.0) * work.asked.gpus for work in timed) / _HOUR
        said.append(f"{left - unknown} of them in about {_hours(total)} one after another, {gpu_hours:,.1f} GPU hours")
    if unknown:
        tokens = sum(work.tokens for work in untimed)
        most_tokens = f"; they generate at most {tokens / 1e6:,.1f} million tokens" if tokens else ""
        said.append(f"the time of {unknown} is not known{most_tokens}")
    if any(work.computed for work in timed):
        said.append(f"~: {COMPUTED}")
    return "; ".join(said)


class _Needs:
    """Resources that the stages of arms need; the shape of each model is looked up once."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._shapes: dict[str, ModelShape | None] = {}

    def of(self, arm: str, stage: str) -> Needs | None:
        """Return the needs of a stage of an arm; none if the shape of its model is unknown."""
        config = self._experiment.arms[arm]
        source = config.model.source.model_dump_json()
        if source not in self._shapes:
            self._shapes[source] = model_shape(config.model.source)
        shape = self._shapes[source]
        return None if shape is None else needs_of(config, stage, shape)


def _rows(planned: ExperimentPlan) -> Iterator[_Row]:
    users, order = planned.users(), planned.arms
    rows: dict[tuple[str, tuple[str, ...]], dict[str, PlannedStage]] = {}
    for run, names in planned.nodes.items():
        for node in map(planned.plan.__getitem__, names) if run.arm not in planned.merged else ():
            arms = {each.arm for each in users[node.key]}
            rows.setdefault((node.stage, tuple(arm for arm in order if arm in arms)), {}).setdefault(node.key, node)
    stages = list(dict.fromkeys(node.stage for node in planned.plan))
    for (stage, shared), nodes in sorted(rows.items(), key=lambda item: (stages.index(item[0][0]), -len(item[0][1]))):
        yield _Row(stage, shared, list(nodes.values()))


def _took(row: _Row, seconds: Mapping[str, float]) -> float | None:
    """Return how long a node of a row took on average, None where none was run."""
    took = [seconds[node.key] for node in row.nodes if node.key in seconds]
    return sum(took) / len(took) if took else None


def _asked(asked: ResourcesConfig) -> str:
    return f"{asked.gpus} x {asked.gpu_memory_gib} GiB" if asked.gpus else "-"


def _needed(asked: ResourcesConfig, gpu: Amount | None) -> str:
    if not asked.gpus:
        return "-"
    return "?" if gpu is None else f"{gpu.gib} GiB"


def _hours(seconds: float) -> str:
    if seconds < _HOUR:
        return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f"{seconds / _HOUR:,.1f} h"
