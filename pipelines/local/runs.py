"""The runs, measurements and experiments of a workspace, their names, and the records of their stages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ngrpo.config import RunConfig, validate
from ngrpo.errors import ConfigError
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.stage_records import read_record, read_settings
from ngrpo_kfp.pipelines.local.workspace import Workspace, started

T = TypeVar("T")
Kind = Literal["run", "evaluation", "experiment"]


@dataclass(frozen=True)
class RunSettings:
    """The configuration of a run, and the name of the run."""

    name: str
    config: RunConfig


def run_directories(workspace: Workspace) -> list[Path]:
    """Return the directories of the runs of presets in a workspace, newest first."""
    return _newest_first(workspace.runs.glob("*"))


def everything(workspace: Workspace) -> list[tuple[Kind, Path]]:
    """Return the directories of runs, measurements and experiments (one for each time it was run), newest first."""
    found: list[tuple[Kind, Path]] = [("run", path) for path in run_directories(workspace)]
    found += [("evaluation", path) for path in _newest_first(workspace.evaluations.glob("*"))]
    found += [("experiment", path) for path in _newest_first(workspace.experiments.glob("*/*"))]
    return sorted(found, key=lambda one: one[1].name, reverse=True)


def name_of(kind: Kind, directory: Path) -> str:
    """Return the name of a run, that of its directory; for an experiment preceded by the experiment's name."""
    return f"{directory.parent.name}/{directory.name}" if kind == "experiment" else directory.name


def find_run(what: str, workspace: Workspace) -> tuple[Kind, Path] | None:
    """Return the run with a name, or the beginning of one, `latest`, the name of an experiment, or a directory.

    Args:
        what: The user's word.
        workspace: Where the runs are.

    Returns:
        Its kind and directory; None if there is no such run.

    Raises:
        ConfigError: Several names begin with it.
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
            f"RUN {what!r}: {len(found)} runs have names that begin with it ({names}{', …' * (len(found) > 4)}); name one"
        )
    return found[0] if found else None


def latest_settings(workspace: Workspace) -> RunSettings | None:
    """Return the configuration of the newest run that has one, finished or not; None if no run has one.

    An unreadable one is reported on standard error and skipped.
    """
    return next(settings_of_runs(run_directories(workspace)), None)


def settings_of_runs(runs: Iterable[Path]) -> Iterator[RunSettings]:
    """Yield the configuration of each run that has one. An unreadable one is reported on standard error."""
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
                f"ignored: {run / 'config.json'}: invalid in this version: {first}; name a preset, or run it again",
                file=sys.stderr,
            )


def is_last(experiment: Path) -> bool:
    """Whether a directory is of the last time its experiment was run."""
    return max(_newest_first(experiment.parent.glob("*")), key=lambda path: path.name) == experiment


def stage_directories(kind: Kind, directory: Path) -> list[Path]:
    """Return the directories with the records and logs of stages: one for each arm of an experiment, otherwise the run's own."""
    return sorted(path for path in directory.glob("*") if path.is_dir()) if kind == "experiment" else [directory]


def stage_records(kind: Kind, directory: Path) -> Iterator[tuple[str, tuple[Path, dict[str, Any]]]]:
    """Yield each node with the directory of its log, and its record."""
    for place in stage_directories(kind, directory):
        for path in sorted((place / "stages").glob("*.json")):
            record = readable(partial(read_record, place, path.stem))
            if record is not None:
                yield path.stem, (place, record)


def readable(read: Callable[[], T | None]) -> T | None:
    """Return the result of a reader of state; None if the state is damaged, because lists show what is readable."""
    try:
        return read()
    except DamagedStateError:
        return None


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if started(path) is not None), key=lambda path: path.name, reverse=True)
