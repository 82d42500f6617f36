"""The runs of a workspace, read from its files alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ngrpo.config import RunConfig, validate
from ngrpo.errors import ConfigError
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.stage_records import read_settings
from ngrpo_kfp.pipelines.local.workspace import Workspace, started


@dataclass(frozen=True)
class LatestSettings:
    """The configuration of a run, and the name of the run."""

    name: str
    config: RunConfig


def run_directories(workspace: Workspace) -> list[Path]:
    """Return the directories of the runs in a workspace, newest first."""
    return sorted((path for path in workspace.runs.glob("*") if started(path) is not None), reverse=True)


def latest_settings(workspace: Workspace) -> LatestSettings | None:
    """Return the configuration of the newest run that has one, whether it finished or not; none if no run has one.

    What cannot be read is said on standard error, and the run before it counts.
    """
    for run in run_directories(workspace):
        try:
            tree = read_settings(run)
            if tree is not None:
                return LatestSettings(run.name, validate(RunConfig, tree))
        except DamagedStateError as error:
            print(f"ignored: {error}", file=sys.stderr)
        except ConfigError as error:
            first = str(error).splitlines()[0]
            print(
                f"ignored: {run / 'config.json'}: no configuration of this version: {first}; name a preset, or run it again",
                file=sys.stderr,
            )
    return None
