"""Progress and outcome of the runs of a workspace, read from its files alone."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ngrpo.contracts.promotion import PROMOTION
from ngrpo.stages.process import LIFELINE
from ngrpo.storage.state import read_state
from ngrpo_kfp.pipelines.local.progress import last_line
from ngrpo_kfp.pipelines.local.runs import (
    Kind,
    everything,
    is_last,
    name_of,
    readable,
    stage_directories,
    stage_records,
)
from ngrpo_kfp.pipelines.local.stage_records import read_plan, read_settings, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace, started
from ngrpo_kfp.pipelines.planning.nodes import stage_of

State = Literal["running", "done", "failed", "stopped"]

_PROGRESS = re.compile(r"(?:(step) |: )(\d+)/(\d+)(?: (samples))?")
_TAIL_BYTES = 16 << 10


@dataclass(frozen=True)
class NodeView:
    """Progress of a node of a run."""

    node: str
    state: Literal["cached", "waiting", "running", "done", "failed", "stopped", "not run"]
    key: str
    seconds: float | None = None
    word: str = ""
    """Why it failed, or the last line of its log."""
    step: tuple[int, int] | None = None
    """Steps or samples done, and their total."""
    unit: str = ""
    """`step` or `samples`."""
    seconds_left: float | None = None
    """Estimated remaining seconds of a stage that works in steps."""


@dataclass(frozen=True)
class RunView:
    """A run of a preset, a measurement of a model, or one execution of an experiment."""

    kind: Kind
    name: str
    directory: Path
    preset: str | None
    model: str | None
    """The registered model; None for a measurement or an experiment."""
    state: State
    stage: str | None
    """The node that is running, that failed, or that was running when the run was stopped."""
    began: datetime
    """In UTC."""
    seconds: float | None
    """Seconds that it took, or has taken so far."""
    gain: float | None
    """Gain in points that the gate judged; None if nothing was compared."""
    interval: tuple[float, float] | None
    decision: str | None
    version: int | None
    nodes: Sequence[NodeView]


def look(kind: Kind, directory: Path, workspace: Workspace) -> RunView:
    """Return the progress and outcome of a run. Damaged files count as missing."""
    summary = _summary(kind, directory)
    goes_on = _goes_on(kind, directory, workspace, summary is not None)
    nodes = node_views(kind, directory, goes_on=goes_on)
    state, stage = _state(nodes, finished=summary is not None, goes_on=goes_on)
    settings: dict[str, Any] = {}
    if kind != "experiment":
        settings = readable(partial(read_settings, directory)) or {}
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
    """Return the progress of each node of a run, in the order of its plan.

    Args:
        kind: What kind of run it is.
        directory: Its directory.
        goes_on: Whether it is running.
    """
    plan = readable(lambda: read_plan(directory.parent if kind == "experiment" else directory)) or {}
    if kind == "experiment" and not is_last(directory):
        plan = {}  # `plan.json` is of the last time it was run
    records = dict(stage_records(kind, directory))
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
    """Return the log of a node; None if it has not started."""
    records = dict(stage_records(kind, directory))
    return records[node][0] / "logs" / f"{node}.log" if node in records else None


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock, of a run or of a workspace. Does not wait for it."""
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


def _summary(kind: Kind, directory: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if it did not finish."""
    if kind == "run":
        return readable(lambda: read_summary(directory))
    file = directory / "evaluation.json" if kind == "evaluation" else directory.parent / "summary.json"
    if kind == "experiment" and not is_last(directory):
        return {}  # the outcome is in the records of its stages
    if not file.is_file():
        return None
    if kind == "evaluation":
        return {}
    # The summary may be of the previous time it was run.
    return _object(file) if file.stat().st_mtime >= directory.stat().st_mtime else None


def _goes_on(kind: Kind, directory: Path, workspace: Workspace, finished: bool) -> bool:
    """Whether a run is running. It holds its lifeline while its stages run, and the lock of the workspace before and after that."""
    if any(is_held(place / LIFELINE) for place in stage_directories(kind, directory)):
        return True
    if finished or not is_held(workspace.root / "run.lock"):
        return False
    return directory.name == max((path.name for _, path in everything(workspace)), default="")


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
    """Return the progress of a stage by its log, its unit, and the remaining seconds at the pace so far."""
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
        return (done, total), unit, None  # several benchmarks run one after another
    # A resumed stage began at the step before its first line. A stage prints about twenty lines in all.
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
    """Return the decision of a run, the last if there are several, with the comparison if the stage's artifact has a local copy."""
    several = summary.get("promotions") or {}
    decision = dict(summary.get("promotion") or next(reversed(list(several.values())), {}))
    for name, node in summary.get("stages", {}).items():
        if decision and stage_of(name) == "model_promotion":
            decision |= _object(workspace.cache / "model_promotion" / node["key"] / PROMOTION) or {}
    return decision


def _object(file: Path) -> dict[str, Any] | None:
    return readable(lambda: read_state(file, dict[str, Any], cure="it is only shown"))
