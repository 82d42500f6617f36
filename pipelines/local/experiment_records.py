"""Records of experiments in the workspace: a directory per experiment, with one for each time it was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic cannot read those of typing before Python 3.12
    cast,
)

from typing_extensions import TypedDict

from ngrpo.storage.state import DamagedStateError, read_state, write_state
from ngrpo_kfp.pipelines.local.stage_records import StageRecord, read_plan
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.nodes import History

SUMMARY = "summary.json"
_PLAN = "plan.json"


class NodeSummary(TypedDict):
    """The result of a node."""

    key: str
    artifact: str
    digest: str
    seconds: float | None


class RunSummary(TypedDict):
    """An arm with one seed."""

    nodes: dict[str, NodeSummary]
    failed: NotRequired[str]
    failed_key: NotRequired[str]


class ExperimentSummary(TypedDict):
    """`summary.json`: the outcome of an experiment."""

    experiment: str
    preset: str
    baseline: str
    benchmark: str
    measure: str
    equivalence: float
    seeds: list[int]
    merged: dict[str, str]
    arms: dict[str, dict[str, RunSummary]]
    """By arm and seed; arms that equal another one are in `merged`."""
    wall_seconds: float
    stage_seconds: float
    mlflow: dict[str, str]


@dataclass(frozen=True)
class ExperimentRecords:
    """The directory of an experiment: `plan.json`, `summary.json`, the comparison, and a directory for each time it was run."""

    directory: Path

    @classmethod
    def of(cls, workspace: Workspace, name: str) -> ExperimentRecords:
        """Return the records of an experiment, without creating anything."""
        return cls(workspace.experiments / name)

    def begin(self, plan: Mapping[str, Any]) -> Path:
        """Create the directory of a run of the experiment, and store its plan.

        Args:
            plan: Record for later plans (`plan_record`).

        Raises:
            ConfigError: It cannot be created.
        """
        now = datetime.now(UTC)
        directory = self.directory / f"{now:%Y%m%d-%H%M%S-%f}"
        with written(directory):
            directory.mkdir(mode=0o700, parents=True)
        write_state(self.directory / _PLAN, plan)
        return directory

    def seconds(self) -> dict[str, float]:
        """Return the duration of stages by the key of their result, over all runs of the experiment; damaged records are skipped."""
        took: dict[str, float] = {}
        for path in sorted(self.directory.glob("*/*/stages/*.json")):
            try:
                record = read_state(path, StageRecord, cure="it only tells how long a stage took")
            except DamagedStateError:
                continue
            if record is not None and "artifact" in record and "seconds" in record and not record.get("cached"):
                took[record["key"]] = record["seconds"]
        return took

    def history(self, finished: Mapping[str, float]) -> History:
        """Return the plan of the experiment's last run. It only serves for explanations, so damage is ignored.

        Args:
            finished: Keys of finished results, from `seconds`.
        """
        try:
            nodes = read_plan(self.directory)
        except DamagedStateError:
            nodes = None
        if nodes is None:
            return History()
        done = {name for name, node in nodes.items() if node["cached"] or node["key"] in finished}
        return History(cast("Mapping[str, Any]", nodes), frozenset(done))

    def write_summary(self, summary: ExperimentSummary) -> Path:
        """Write `summary.json` and return its path."""
        path = self.directory / SUMMARY
        write_state(path, summary)
        return path

    def summary(self) -> ExperimentSummary | None:
        """Return `summary.json`; none if there is none.

        Raises:
            DamagedStateError: It cannot be read.
        """
        cure = "run the experiment again: its results are in the store"
        return read_state(self.directory / SUMMARY, ExperimentSummary, cure=cure)
