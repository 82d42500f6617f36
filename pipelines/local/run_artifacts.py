"""The artifacts that the runs of a workspace need, and their sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ngrpo.storage.manifest import MANIFEST
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.runs import (
    Kind,
    RunSettings,
    everything,
    is_last,
    readable,
    run_directories,
    settings_of_runs,
    stage_records,
)
from ngrpo_kfp.pipelines.local.stage_records import read_plan, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import stage_of

Artifact = tuple[str, str]
"""Stage and key of a result."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that only one run of the workspace uses."""

    directory: int
    """Its directory."""
    store: int
    """Artifacts in the store that no other run here uses."""
    cache: int
    """Local copies of those artifacts."""
    unknown: int
    """Number of those artifacts without a local copy, so that their size is unknown."""

    @property
    def total(self) -> int:
        """Sum of the known sizes."""
        return self.directory + self.store + self.cache


def needed_artifacts(kind: Kind, directory: Path) -> frozenset[Artifact]:
    """Return the results that a run made, read or would make: those in its plan, and those in the records of its stages.

    Raises:
        DamagedStateError: The plan cannot be read, and there is no summary in its place.
    """
    found = {(stage_of(name), record["key"]) for name, (_, record) in stage_records(kind, directory)}
    place = directory
    if kind == "experiment":
        place = directory.parent
        if not is_last(directory):
            return frozenset(found)  # `plan.json` is of the last time it was run
    summary = readable(lambda: read_summary(directory)) if kind == "run" else None
    if summary is not None:
        found |= {(stage_of(name), node["key"]) for name, node in summary["stages"].items()}
        plan = readable(lambda: read_plan(place))
    else:
        plan = read_plan(place)
    return frozenset(found | {(stage_of(name), node["key"]) for name, node in (plan or {}).items()})


def made_artifacts(kind: Kind, directory: Path) -> frozenset[Artifact]:
    """Return the results that the stages of a run made, or began to make."""
    return frozenset(
        (stage_of(name), record["key"])
        for name, (_, record) in stage_records(kind, directory)
        if not record.get("cached")
    )


def sizes(workspace: Workspace) -> dict[Path, Sizes]:
    """Return, by directory of a run, the sizes of what only that run uses.

    The size of an artifact is read from the manifest of its local copy; without a copy it is unknown.
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


def settings_behind(artifacts: Sequence[Artifact], workspace: Workspace, model_name: str) -> RunSettings | None:
    """Return the configuration of the run that made or read some results; None if there is no such run here with readable settings.

    Of several runs it is one of the registered model, if there is any; of those the one with the most of these results, and of those the
    newest.

    Args:
        artifacts: The results.
        workspace: Where the runs are.
        model_name: The registered model.
    """
    known = {
        run: sum(each in _listed_artifacts("run", run) for each in artifacts) for run in run_directories(workspace)
    }
    found = list(settings_of_runs(sorted(filter(known.get, known), key=lambda run: -known[run])))
    return next((run for run in found if run.config.promotion.model_name == model_name), found[0] if found else None)


def disk_size(place: Path) -> int:
    """Return the bytes of all files below a directory, 0 if there is no such directory; links are not followed."""
    total = 0
    for root, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # a run that is going on may delete files
                continue
    return total


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
