"""Compare runs of the workspace: find them, group them into arms, and write the comparison."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic cannot read those of typing before Python 3.12
)

from pydantic import ConfigDict
from rich.console import Console
from typing_extensions import TypedDict

from ngrpo.config import RunConfig, validate
from ngrpo.contracts.evaluation import EVALUATION, read_evaluation
from ngrpo.errors import ConfigError, StoreError
from ngrpo.report.comparison import JSON, PAGE, Arm, ComparedRun, compare, comparison_table, write_comparison
from ngrpo.report.phases import messages, phase
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo.storage.state import read_state
from ngrpo_kfp.pipelines.local.experiment_comparison import took_by_results
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.stage_records import read_record, read_settings, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.nodes import stage_of

_CURE = "run the preset again: its results are in the store"
_EVALUATION, _TRAINING = "benchmark_evaluation", "ngrpo_training"
_MARGIN = 1.0
_NO_RESULT = {"seed", "preset", "titles", "costs", "cluster", "resources"}
"""Fields of a configuration in which runs of one arm may differ."""
_MOST_SETTINGS = 3


class _Node(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    key: str


class _ExperimentRun(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    nodes: dict[str, _Node]
    failed: NotRequired[str]


class _ExperimentSummary(TypedDict):
    """The part of `experiments/NAME/summary.json` that is read."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    benchmark: str
    measure: str
    equivalence: float
    arms: dict[str, dict[str, _ExperimentRun]]
    merged: NotRequired[dict[str, str]]


_Read = Callable[[int, str, Mapping[str, Any]], ComparedRun]
"""Reads the results of a run: its seed, its word on the command line, its nodes."""


@dataclass(frozen=True)
class Asked:
    """Options of a comparison; none for the default.

    Attributes:
        baseline: Name of an arm, or its word on the command line; by default the first.
        benchmark: Benchmark of the primary comparison.
        measure: Its measure.
        equivalence: Margin of equivalence in points.
    """

    baseline: str | None = None
    benchmark: str | None = None
    measure: str | None = None
    equivalence: float | None = None

    def or_else(self, benchmark: str, measure: str, equivalence: float = _MARGIN) -> Asked:
        """Return this with defaults."""
        return Asked(
            self.baseline,
            self.benchmark or benchmark,
            self.measure or measure,
            equivalence if self.equivalence is None else self.equivalence,
        )


@dataclass(frozen=True)
class _Named:
    """A named run: its configuration and its nodes by name, or why it has none."""

    word: str
    label: str | None
    config: RunConfig
    nodes: Mapping[str, Any] | None
    failure: str


def compare_runs(
    words: Sequence[str],
    asked: Asked,
    workspace: Workspace,
    console: Console,
    output: Path | None = None,
    *,
    as_json: bool = False,
) -> Path:
    """Compare runs, print the tables, and return the directory of `comparison.html` and `comparison.json`.

    Args:
        words: Words of the user: `[NAME=]RUN`, a run by name or directory, or `[NAME=]EXPERIMENT:ARM`.
        asked: Options of the comparison.
        workspace: Where the runs are.
        console: Where tables are shown.
        output: Directory to write to; by default one of the workspace.
        as_json: Print `comparison.json` in place of the tables.

    Raises:
        ConfigError: There is no such run, it has no evaluation, or runs cannot be compared.
        StoreError: An artifact of a run is no longer in the store.
    """
    given = [_split(word, workspace) for word in words]
    named = [_named_run(word, label, run, workspace) for word, label, run, experiment in given if experiment is None]
    of_experiments = [
        (word, label or experiment[1], *experiment, _experiment(experiment[0], workspace))
        for word, label, _, experiment in given
        if experiment is not None
    ]
    total = sum(run.nodes is not None for run in named) + sum(
        "failed" not in run
        for *_, name, arm, summary in of_experiments
        for run in _runs_of_arm(name, arm, summary).values()
    )
    with phase(messages(console, as_json=as_json), "comparing the runs") as shown:
        with services(workspace) as around:
            store, done = around.artifact_store(workspace), itertools.count()

            def read(seed: int, word: str, nodes: Mapping[str, Any]) -> ComparedRun:
                number = next(done)
                shown.reached(f"reading run {number + 1} of {total}", number, total)
                return _compared(seed, word, nodes, store)

            arms = _arms_of_runs(named, read)
            for word, label, name, arm, summary in of_experiments:
                arms[word] = _arm_of_experiment(name, arm, label, summary, read)
                asked = asked.or_else(summary["benchmark"], summary["measure"], summary["equivalence"])
        shown.now("comparing the runs")
        if named:
            promotion = named[0].config.promotion
            asked = asked.or_else(promotion.benchmark, promotion.statistic)
        in_order = list(dict.fromkeys(arms[word].name for word in words))
        by_name: dict[str, Arm] = {}
        for found in arms.values():
            if by_name.setdefault(found.name, found) is not found:
                raise ConfigError(f"comparison: two arms are called {found.name}: name them, NAME=RUN")
        if len(by_name) < 2:
            raise ConfigError(
                f"comparison: {', '.join(words)}: one arm only, {in_order[0]}: name runs that differ by more than their seed, or give them "
                "names: before=RUN after=RUN"
            )
        baseline = in_order[0] if asked.baseline is None else asked.baseline
        comparison = compare(
            [by_name[name] for name in in_order],
            baseline=arms[baseline].name if baseline in arms else baseline,
            benchmark=asked.benchmark,
            measure=asked.measure or "mean",
            margin=_MARGIN if asked.equivalence is None else asked.equivalence,
            prices=named[0].config.costs if named else None,
        )
        directory = output or workspace.root / "comparisons" / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        with written(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_comparison(comparison, directory)
    if as_json:
        console.print((directory / JSON).read_text(encoding="utf-8"), soft_wrap=True, markup=False)
    else:
        console.print(comparison_table(comparison))
        console.print(f"comparison  {directory / PAGE}", soft_wrap=True)
    return directory


def _split(word: str, workspace: Workspace) -> tuple[str, str | None, Path, tuple[str, str] | None]:
    """Return a word, the name in front of it, the directory of the run that it names, or the experiment and the arm."""
    label, equals, reference = word.rpartition("=")
    if equals and not label:
        raise ConfigError(f"RUN {word!r}: no name before the equals sign; write NAME=RUN, or the run alone")
    for place in (Path(reference), workspace.runs / reference, workspace.root / reference):
        if reference and place.is_dir():
            return word, label or None, place, None
    experiment, colon, arm = reference.partition(":")
    if colon and experiment and arm:
        return word, label or None, workspace.root, (experiment, arm)
    raise ConfigError(
        f"RUN {word!r}: no run of that name in {workspace.runs}, and no such directory: list the runs there, or write EXPERIMENT:ARM"
    )


def _named_run(word: str, label: str | None, directory: Path, workspace: Workspace) -> _Named:
    settings, summary = read_settings(directory), read_summary(directory)
    if settings is None:
        raise ConfigError(f"RUN {word!r}: no config.json in {directory}; name the directory of a run")
    try:
        config = validate(RunConfig, settings)
    except ConfigError as error:
        raise ConfigError(
            f"{directory / 'config.json'}: invalid in this version: {str(error).splitlines()[0]}; {_CURE}"
        ) from error
    if summary is None:
        return _Named(word, label, config, None, _failure(directory))
    if not any(stage_of(node) == _EVALUATION for node in summary["stages"]):
        raise ConfigError(f"RUN {word!r}: it has no evaluation, for no node of it is a {_EVALUATION}; name another run")
    return _Named(word, label, config, summary["stages"], "")


def _failure(directory: Path) -> str:
    """Return why a run did not finish, if its stages recorded it."""
    for path in sorted((directory / "stages").glob("*.json")):
        record = read_record(directory, path.stem) or {}
        if "error" in record:
            return f"{path.stem}: {str(record['error']).splitlines()[0]}"
    return "it did not finish"


def _arms_of_runs(named: Sequence[_Named], read: _Read) -> dict[str, Arm]:
    """Group runs that share a name, or that differ only by their seed; return the arm of each word."""
    groups: dict[str, list[_Named]] = {}
    for run in named:
        groups.setdefault(run.label or _identity(run.config), []).append(run)
    names = _names([runs[0] for runs in groups.values()])
    arms = {}
    for runs, name in zip(groups.values(), names, strict=True):
        done: dict[int, ComparedRun] = {}
        failed: dict[int, str] = {}
        for run in runs:
            seed = run.config.seed
            if seed in done or seed in failed:
                raise ConfigError(
                    f"RUN {run.word!r}: another run of {name} has the same settings and seed {seed}: leave one out, or give them names: "
                    "before=RUN after=RUN"
                )
            if run.nodes is None:
                failed[seed] = run.failure
            else:
                done[seed] = read(seed, run.word, run.nodes)
        if not done:
            raise ConfigError(
                f"RUN {runs[0].word!r}: it has no evaluation ({runs[0].failure}); run the preset again, or name another"
            )
        arm = Arm(name, tuple(done.values()), failed)
        arms.update({run.word: arm for run in runs})
    return arms


def _identity(config: RunConfig) -> str:
    return config.model_dump_json(exclude=_NO_RESULT)


def _names(firsts: Sequence[_Named]) -> list[str]:
    """Name arms: by the user's names, by their presets if these differ, or by the settings that differ."""
    presets = [run.config.preset for run in firsts]
    settings = [_flat(run.config.model_dump(mode="json", exclude=_NO_RESULT)) for run in firsts]
    fields = {field for each in settings for field in each}
    differ = sorted(field for field in fields if len({str(each.get(field)) for each in settings}) > 1)
    names = []
    for run, own in zip(firsts, settings, strict=True):
        if run.label is not None:
            names.append(run.label)
        elif presets.count(run.config.preset) == 1:
            names.append(run.config.preset)
        else:
            shown = [f"{field.rpartition('.')[2]}={own.get(field)}" for field in differ[:_MOST_SETTINGS]]
            names.append(", ".join(shown) or run.config.preset)
    # Two arms may differ only in settings that are left out.
    return [name if names.count(name) == 1 else run.word for name, run in zip(names, firsts, strict=True)]


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def _compared(seed: int, word: str, nodes: Mapping[str, Any], store: ArtifactStore) -> ComparedRun:
    """Fetch the compared parts of a run; of a training only its log, because its model is large.

    Raises:
        ConfigError: It has no evaluation, or several.
        StoreError: An artifact is gone.
    """
    evaluations = [name for name in nodes if stage_of(name) == _EVALUATION]
    trainings = [name for name in nodes if stage_of(name) == _TRAINING]
    if len(evaluations) != 1:
        found = f"several evaluations, {', '.join(evaluations)}" if evaluations else "no evaluation"
        raise ConfigError(f"RUN {word!r}: it has {found}; name a run with one")
    artifact = store.fetch(_reference(evaluations[0], nodes, store), only=(EVALUATION, "samples/trained/"))
    training = None
    if len(trainings) == 1:
        training = store.fetch(_reference(trainings[0], nodes, store), only="log_history.json")
    return ComparedRun(
        seed=seed,
        evaluation=read_evaluation(artifact / EVALUATION, _CURE),
        training=training,
        samples=artifact,
        took=took_by_results(((stage_of(name), node["key"]) for name, node in nodes.items()), store),
    )


def _reference(name: str, nodes: Mapping[str, Any], store: ArtifactStore) -> Reference:
    found = store.find(stage_of(name), nodes[name]["key"])
    if found is None:
        raise StoreError(f"artifact {nodes[name].get('artifact', name)} is gone: run the preset again")
    return found


def _experiment(name: str, workspace: Workspace) -> _ExperimentSummary:
    path = workspace.root / "experiments" / name / "summary.json"
    summary = read_state(path, _ExperimentSummary, cure="run the experiment again: its results are in the store")
    if summary is None:
        raise ConfigError(f"experiment {name}: no results in {path.parent}; run it first: ngrpo experiment run {name}")
    return summary


def _runs_of_arm(experiment: str, arm: str, summary: _ExperimentSummary) -> Mapping[str, _ExperimentRun]:
    """Return the runs of an arm by seed.

    Raises:
        ConfigError: There is no such arm.
    """
    known = summary["arms"]
    own = summary.get("merged", {}).get(arm, arm)
    if own not in known:
        raise ConfigError(f"experiment {experiment}: arm {arm!r} is unknown; choose one of {', '.join(known)}")
    return known[own]


def _arm_of_experiment(experiment: str, arm: str, name: str, summary: _ExperimentSummary, read: _Read) -> Arm:
    known = _runs_of_arm(experiment, arm, summary)
    failed = {int(seed): run["failed"] for seed, run in known.items() if "failed" in run}
    runs = tuple(
        read(int(seed), f"{experiment}:{arm}", run["nodes"]) for seed, run in known.items() if "failed" not in run
    )
    if not runs:
        raise ConfigError(f"experiment {experiment}: no run of arm {arm} has an evaluation: run it again")
    return Arm(name, runs, failed)
