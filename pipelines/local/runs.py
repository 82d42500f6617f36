"""The runs of a workspace, their states and what they need of the store, read from the workspace's files alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ngrpo.config import RunConfig, validate
from ngrpo.contracts.promotion import PROMOTION
from ngrpo.errors import ConfigError
from ngrpo.stages.process import LIFELINE
from ngrpo.storage.manifest import MANIFEST
from ngrpo.storage.state import DamagedStateError, read_state
from ngrpo_kfp.pipelines.local.progress import last_line
from ngrpo_kfp.pipelines.local.stage_records import read_plan, read_record, read_settings, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace, started
from ngrpo_kfp.pipelines.planning.nodes import stage_of

T = TypeVar("T")
Kind = Literal["run", "evaluation", "experiment"]
State = Literal["running", "done", "failed", "stopped"]
Artifact = tuple[str, str]
"""Stage and key of a result."""

_STAMP = re.compile(r"\d{8}-\d{6}-\d{6}")
_PROGRESS = re.compile(r"(?:(step) |: )(\d+)/(\d+)(?: (samples))?")
_TAIL_BYTES = 16 << 10


@dataclass(frozen=True)
class RunSettings:
    """The configuration of a run, and the name of the run."""

    name: str
    config: RunConfig


@dataclass(frozen=True)
class NodeView:
    """How far a node of a run is."""

    node: str
    state: Literal["cached", "waiting", "running", "done", "failed", "stopped", "not run"]
    key: str
    seconds: float | None = None
    word: str = ""
    """Why it failed, or the last line that it printed."""
    step: tuple[int, int] | None = None
    """How much of what it is doing is done, and of how much."""
    unit: str = ""
    """`step` or `samples`."""
    seconds_left: float | None = None
    """Estimate of the time that is left, of a stage that works in steps."""


@dataclass(frozen=True)
class RunView:
    """A run of a preset, a measurement of a model, or one time that an experiment was run."""

    kind: Kind
    name: str
    directory: Path
    preset: str | None
    model: str | None
    """The registered model; none for a measurement and an experiment."""
    state: State
    stage: str | None
    """The node that runs, that failed, or that was at work when the run was stopped."""
    began: datetime
    """In UTC."""
    seconds: float | None
    """How long it took, or has taken."""
    gain: float | None
    """Points that the gate was asked about; none where nothing was compared."""
    interval: tuple[float, float] | None
    decision: str | None
    version: int | None
    nodes: Sequence[NodeView]


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run has and no other run of the workspace."""

    directory: int
    """Its directory."""
    store: int
    """Artifacts in the store that no other run here has."""
    cache: int
    """Local copies of those."""
    unknown: int
    """How many of those artifacts are of unknown size, for there is no copy of them here."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.directory + self.store + self.cache


def run_directories(workspace: Workspace) -> list[Path]:
    """Return the directories of the runs of presets in a workspace, newest first."""
    return _newest_first(workspace.runs.glob("*"))


def everything(workspace: Workspace) -> list[tuple[Kind, Path]]:
    """Return the directories of runs, measurements and experiments (one for each time that it was run), newest first."""
    found: list[tuple[Kind, Path]] = [("run", path) for path in run_directories(workspace)]
    found += [("evaluation", path) for path in _newest_first(workspace.evaluations.glob("*"))]
    found += [("experiment", path) for path in _newest_first(workspace.experiments.glob("*/*"))]
    return sorted(found, key=lambda one: one[1].name, reverse=True)


def name_of(kind: Kind, directory: Path) -> str:
    """Return what a run is called: by its directory; an experiment by its name too."""
    return f"{directory.parent.name}/{directory.name}" if kind == "experiment" else directory.name


def find_run(what: str, workspace: Workspace) -> tuple[Kind, Path] | None:
    """Return the run that a person means by a name, the beginning of one, `latest`, the name of an experiment, or a directory.

    Args:
        what: What the person wrote.
        workspace: Where the runs are.

    Returns:
        Its kind and directory; none if there is no such run.

    Raises:
        ConfigError: Several runs have a name that begins so.
    """
    known = everything(workspace)
    if what == "latest":
        return next((one for one in known if one[1] == workspace.latest.resolve()), None)
    place = Path(what).absolute() if "/" in what else None
    exact = [one for one in known if what == name_of(*one) or place == one[1]]
    exact = exact or [one for one in known if one[0] == "experiment" and one[1].parent.name == what][:1]
    found = exact or [one for one in known if len(what) >= len("20260131") and name_of(*one).startswith(what)]
    if len(found) > 1:
        names = ", ".join(name_of(*one) for one in found[:4])
        raise ConfigError(
            f"RUN {what!r}: {len(found)} runs are called so ({names}{', …' * (len(found) > 4)}); name one"
        )
    return found[0] if found else None


def latest_settings(workspace: Workspace) -> RunSettings | None:
    """Return the configuration of the newest run that has one, whether it finished or not; none if no run has one.

    What cannot be read is said on standard error, and the run before it counts.
    """
    return next(_settings(run_directories(workspace)), None)


def settings_behind(artifacts: Sequence[Artifact], workspace: Workspace) -> RunSettings | None:
    """Return the configuration of the run that results are from; none if no run here with settings that can be read made or read them.

    Of several it is the newest that knows the most of them.

    Args:
        artifacts: The results.
        workspace: Where the runs are.
    """
    known = {
        run: sum(each in _listed_artifacts("run", run) for each in artifacts) for run in run_directories(workspace)
    }
    return next(_settings(sorted(filter(known.get, known), key=lambda run: -known[run])), None)


def _settings(runs: Iterable[Path]) -> Iterator[RunSettings]:
    for run in runs:
        try:
            tree = read_settings(run)
            if tree is not None:
                yield RunSettings(run.name, validate(RunConfig, tree))
        except DamagedStateError as error:
            print(f"ignored: {error}", file=sys.stderr)
        except ConfigError as error:
            first = str(error).splitlines()[0]
            print(
                f"ignored: {run / 'config.json'}: no configuration of this version: {first}; name a preset, or run it again",
                file=sys.stderr,
            )


def look(kind: Kind, directory: Path, workspace: Workspace) -> RunView:
    """Return how far a run is, and what came of it. What is damaged counts as missing."""
    summary = _summary(kind, directory)
    goes_on = _goes_on(kind, directory, workspace, summary is not None)
    nodes = node_views(kind, directory, goes_on=goes_on)
    state, stage = _state(nodes, finished=summary is not None, goes_on=goes_on)
    settings: dict[str, Any] = {}
    if kind != "experiment":
        settings = _readable(partial(read_settings, directory)) or {}
    gate = settings.get("promotion")
    promotion = _promotion(summary or {}, workspace)
    comparison = promotion.get("comparison") or {}
    began = started(directory)
    assert began is not None
    return RunView(
        kind=kind,
        name=name_of(kind, directory),
        directory=directory,
        preset=settings.get("preset")
        or (summary or {}).get("preset")
        or directory.name[len("20260131-235959-123456-") :]
        or None,
        model=gate.get("model_name") if kind == "run" and isinstance(gate, dict) else None,
        state=state,
        stage=stage,
        began=began.replace(tzinfo=UTC),
        seconds=_seconds(directory, summary, began.replace(tzinfo=UTC), goes_on=goes_on),
        gain=comparison.get("gain"),
        interval=tuple(comparison["interval"]) if comparison else None,
        decision=promotion.get("decision"),
        version=promotion.get("version"),
        nodes=nodes,
    )


def node_views(kind: Kind, directory: Path, *, goes_on: bool) -> list[NodeView]:
    """Return how far each node of a run is, in the order of its plan.

    Args:
        kind: What kind of run it is.
        directory: Its directory.
        goes_on: Whether it is running.
    """
    plan = _readable(lambda: read_plan(directory.parent if kind == "experiment" else directory)) or {}
    if kind == "experiment" and not _is_last(directory):
        plan = {}  # it is that of the last time
    records = dict(_records(kind, directory))
    by_key = {record["key"]: name for name, (_, record) in records.items()}
    views = []
    for name in [*plan, *(name for name in records if name not in plan)]:
        planned = plan.get(name)
        key = planned["key"] if planned is not None else records[name][1]["key"]
        worker = name if name in records else by_key.get(key)  # another node with that key did the work for both
        if worker is not None:
            views.append(_node(name, *records[worker], worker=worker, goes_on=goes_on))
        elif planned is not None and planned["cached"]:
            views.append(NodeView(name, "cached", key))
        else:
            views.append(NodeView(name, "waiting" if goes_on else "not run", key))
    return views


def log_of(kind: Kind, directory: Path, node: str) -> Path | None:
    """Return the log of a node that has started; none if it has not."""
    records = dict(_records(kind, directory))
    return records[node][0] / "logs" / f"{node}.log" if node in records else None


def needed_artifacts(kind: Kind, directory: Path) -> frozenset[Artifact]:
    """Return the results that a run made, read or would make: those of its plan, and those that its stages recorded.

    Raises:
        DamagedStateError: The plan cannot be read, and there is no summary that says it.
    """
    found = {(stage_of(name), record["key"]) for name, (_, record) in _records(kind, directory)}
    place = directory
    if kind == "experiment":
        place = directory.parent
        if not _is_last(directory):
            return frozenset(found)  # the plan is that of the last time
    summary = _readable(lambda: read_summary(directory)) if kind == "run" else None
    if summary is not None:
        found |= {(stage_of(name), node["key"]) for name, node in summary["stages"].items()}
        plan = _readable(lambda: read_plan(place))
    else:
        plan = read_plan(place)
    return frozenset(found | {(stage_of(name), node["key"]) for name, node in (plan or {}).items()})


def made_artifacts(kind: Kind, directory: Path) -> frozenset[Artifact]:
    """Return the results that the stages of a run made themselves, or began to make."""
    return frozenset(
        (stage_of(name), record["key"]) for name, (_, record) in _records(kind, directory) if not record.get("cached")
    )


def sizes(workspace: Workspace) -> dict[Path, Sizes]:
    """Return by directory of a run what only this run keeps.

    The size of an artifact is that in the manifest of its local copy; without a copy it is not known.
    """
    needed = {directory: _listed_artifacts(kind, directory) for kind, directory in everything(workspace)}
    users: dict[Artifact, int] = {}
    for artifacts in needed.values():
        for artifact in artifacts:
            users[artifact] = users.get(artifact, 0) + 1
    found = {}
    for directory, artifacts in needed.items():
        alone = [artifact for artifact in artifacts if users[artifact] == 1]
        known = {artifact: _stored_size(workspace, artifact) for artifact in alone}
        cache = sum(disk_size(workspace.cache / stage / key) for stage, key in alone)
        store = sum(size for size in known.values() if size is not None)
        found[directory] = Sizes(disk_size(directory), store, cache, sum(size is None for size in known.values()))
    return found


def disk_size(place: Path) -> int:
    """Return the bytes of all files below a directory, none if there is no such directory; links are not followed."""
    total = 0
    for root, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # a run goes on
                continue
    return total


def is_held(lock: Path) -> bool:
    """Say whether a process holds a lock, without waiting for it; the lock of a run, of a workspace."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if started(path) is not None), key=lambda path: path.name, reverse=True)


def _readable(read: Callable[[], T | None]) -> T | None:
    """Return what a reader of state returns; none if it is damaged: a list shows what there is."""
    try:
        return read()
    except DamagedStateError:
        return None


def _summary(kind: Kind, directory: Path) -> dict[str, Any] | None:
    """Return what a run that finished says of itself; none if it did not finish."""
    if kind == "run":
        return _readable(lambda: read_summary(directory))
    file = directory / "evaluation.json" if kind == "evaluation" else directory.parent / "summary.json"
    if kind == "experiment" and not _is_last(directory):
        return {}  # what it came to is in the records of its stages
    if not file.is_file():
        return None
    if kind == "evaluation":
        return {}
    # The summary may be that of the time before.
    return _object(file) if file.stat().st_mtime >= directory.stat().st_mtime else None


def _is_last(experiment: Path) -> bool:
    """Say whether a directory is that of the last time that its experiment was run."""
    return max(_newest_first(experiment.parent.glob("*")), key=lambda path: path.name) == experiment


def _goes_on(kind: Kind, directory: Path, workspace: Workspace, finished: bool) -> bool:
    """Say whether a run is running: while its stages are, it holds its lifeline; before and after that, the lock of the workspace."""
    if any(is_held(place / LIFELINE) for place in _places(kind, directory)):
        return True
    if finished or not is_held(workspace.root / "run.lock"):
        return False
    return directory.name == max((path.name for _, path in everything(workspace)), default="")


def _places(kind: Kind, directory: Path) -> list[Path]:
    """Return the directories with the records and logs of stages: those of the arms of an experiment, else the one."""
    return sorted(path for path in directory.glob("*") if path.is_dir()) if kind == "experiment" else [directory]


def _records(kind: Kind, directory: Path) -> Iterator[tuple[str, tuple[Path, dict[str, Any]]]]:
    """Yield by node the directory with its log, and what it recorded of itself."""
    for place in _places(kind, directory):
        for path in sorted((place / "stages").glob("*.json")):
            record = _readable(partial(read_record, place, path.stem))
            if record is not None:
                yield path.stem, (place, record)


def _node(name: str, place: Path, record: Mapping[str, Any], *, worker: str, goes_on: bool) -> NodeView:
    key, log = record["key"], place / "logs" / f"{worker}.log"
    if "seconds" in record:
        failed = "error" in record
        return NodeView(name, "failed" if failed else "done", key, record["seconds"], record.get("error", ""))
    since = (place / "stages" / f"{worker}.json").stat().st_mtime
    if not goes_on:
        last = log.stat().st_mtime if log.exists() else since
        return NodeView(name, "stopped", key, max(0.0, last - since), last_line(log))
    seconds = max(0.0, time.time() - since)
    step, unit, left = _progress(log, seconds)
    return NodeView(name, "running", key, seconds, last_line(log), step, unit, left)


def _progress(log: Path, seconds: float) -> tuple[tuple[int, int] | None, str, float | None]:
    """Return how far a stage is by its log, in which unit, and the seconds that are left if it goes on as fast as so far."""
    if not log.exists():
        return None, "", None
    with log.open("rb") as file:
        head = file.read(_TAIL_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = file.read()
    last = next(iter(_steps(reversed(tail.decode("utf-8", errors="replace").splitlines()))), None)
    if last is None:
        return None, "", None
    unit, done, total = last
    if unit != "step":
        return (done, total), unit, None  # several benchmarks follow each other
    # A stage that resumed began at the step before its first line; about twenty lines are printed in all.
    first = next(
        done for unit, done, _ in _steps(head.decode("utf-8", errors="replace").splitlines()) if unit == "step"
    )
    made = done - max(0, first - max(1, total // 20))
    return (done, total), unit, seconds * (total - done) / made if made > 0 else None


def _steps(lines: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for line in lines:
        match = _PROGRESS.search(line)
        if match is not None and (match[1] or match[4]):
            yield match[1] or match[4], int(match[2]), int(match[3])


def _state(nodes: Sequence[NodeView], *, finished: bool, goes_on: bool) -> tuple[State, str | None]:
    def first(*states: str) -> str | None:
        return next((node.node for node in nodes if node.state in states), None)

    if goes_on:
        return "running", first("running")
    if first("failed") is not None:
        return "failed", first("failed")
    if finished and first("stopped") is None:
        return "done", None
    return "stopped", first("stopped", "not run")


def _seconds(directory: Path, summary: Mapping[str, Any] | None, began: datetime, *, goes_on: bool) -> float | None:
    if goes_on:
        return max(0.0, time.time() - began.timestamp())
    if summary is not None and "wall_seconds" in summary:
        return float(summary["wall_seconds"])
    times = [path.stat().st_mtime for path in directory.rglob("*") if path.is_file()]
    return max(0.0, max(times) - began.timestamp()) if times else None


def _promotion(summary: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """Return what a run decided, with the comparison where there is a copy of the stage's artifact; of several the last."""
    several = summary.get("promotions") or {}
    decision = dict(summary.get("promotion") or next(reversed(list(several.values())), {}))
    for name, node in summary.get("stages", {}).items():
        if decision and stage_of(name) == "model_promotion":
            decision |= _object(workspace.cache / "model_promotion" / node["key"] / PROMOTION) or {}
    return decision


def _object(file: Path) -> dict[str, Any] | None:
    return _readable(lambda: read_state(file, dict[str, Any], cure="it is only shown"))


def _listed_artifacts(kind: Kind, directory: Path) -> frozenset[Artifact]:
    try:
        return needed_artifacts(kind, directory)
    except DamagedStateError:
        return frozenset()


def _stored_size(workspace: Workspace, artifact: Artifact) -> int | None:
    stage, key = artifact
    try:
        files = json.loads((workspace.cache / stage / key / MANIFEST).read_bytes())["files"]
        return sum(int(entry["size"]) for entry in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
