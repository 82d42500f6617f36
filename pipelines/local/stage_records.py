"""Types and readers of the files in which a run records its plan, its stages and its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic cannot read those of typing before Python 3.12
    cast,
)

from pydantic import ConfigDict
from typing_extensions import TypedDict

from ngrpo.storage.state import read_state


class ContentRecord(TypedDict):
    """A copy that a stage reads, in `plan.json` (`Content.record`)."""

    digest: str
    files: dict[str, tuple[str, int | None]]


class PlanRecord(TypedDict):
    """A node in `plan.json` (`plan_record`)."""

    cached: bool
    key: str
    config: dict[str, Any]
    content: NotRequired[dict[str, ContentRecord]]
    sources: dict[str, str]
    libraries: NotRequired[dict[str, str]]
    inputs: dict[str, str]


class StageRecord(TypedDict):
    """`stages/<node>.json`: the record of a stage, written when it starts and when it ends (`ngrpo.stages.execution`)."""

    key: str
    pid: int
    cached: NotRequired[bool]
    artifact: NotRequired[str]
    digest: NotRequired[str]
    error: NotRequired[str]
    reason: NotRequired[str]
    seconds: NotRequired[float]
    peak_memory_bytes: NotRequired[int]


class _StageSummary(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    key: str
    artifact: str


class _MLflowSummary(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    run_id: str


class _Summary(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    stages: dict[str, _StageSummary]
    mlflow: _MLflowSummary
    wall_seconds: float


def read_plan(run_directory: Path) -> dict[str, PlanRecord] | None:
    """Return the plan of a run by node; None if it was not written.

    Raises:
        DamagedStateError: It cannot be read.
    """
    return read_state(
        run_directory / "plan.json", dict[str, PlanRecord], cure="it only explains later plans and may be deleted"
    )


def read_record(run_directory: Path, node: str) -> dict[str, Any] | None:
    """Return the record of a node in a run; None if it did not start.

    Raises:
        DamagedStateError: It cannot be read.
    """
    path = run_directory / "stages" / f"{node}.json"
    return cast("dict[str, Any] | None", read_state(path, StageRecord, cure="run again: finished stages are kept"))


def read_summary(run_directory: Path) -> dict[str, Any] | None:
    """Return `summary.json` of a run; None if the run did not finish.

    Raises:
        DamagedStateError: It cannot be read.
    """
    cure = "run the preset again: its results are in the store"
    return cast("dict[str, Any] | None", read_state(run_directory / "summary.json", _Summary, cure=cure))


def read_settings(run_directory: Path) -> dict[str, Any] | None:
    """Return `config.json` of a run, not yet validated; None if there is no such file.

    Raises:
        DamagedStateError: It cannot be read.
    """
    cure = "run the preset again: its results are in the store"
    return read_state(run_directory / "config.json", dict[str, Any], cure=cure)
