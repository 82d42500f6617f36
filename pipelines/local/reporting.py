"""Build the report of a run from its summary and its artifacts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ngrpo.config import RunConfig, validate
from ngrpo.contracts.evaluation import EVALUATION, read_evaluation
from ngrpo.errors import ConfigError, StoreError
from ngrpo.report.last_run import LastRun
from ngrpo.report.page import write_report
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.stage_records import read_settings, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.nodes import of_stage, stage_of

EVALUATING = "benchmark_evaluation"


def build_report(
    path: Path,
    *,
    summary: Mapping[str, Any],
    config: RunConfig,
    references: Mapping[str, Reference],
    store: ArtifactStore,
) -> Mapping[str, Path]:
    """Write the report of a run, and return the verified directory of each node's artifact.

    Args:
        path: File to write.
        summary: The run's `summary.json`.
        config: Configuration of the run.
        references: Artifact of each node.
        store: Where the artifacts are; what is read of them is verified.

    Raises:
        StoreError: An artifact is missing or does not match its manifest.
    """
    artifacts = {name: store.fetch(reference) for name, reference in references.items()}
    with written(path):
        write_report(
            path, summary=dict(summary), config=config, artifacts=artifacts, last_run=_last_run(summary, store)
        )
    return artifacts


def last_run_of(run: Path, preset: str, workspace: Workspace) -> dict[str, str] | None:
    """Return the last finished run of a preset before another run, as `summary.json` names it: `run`, and the key of its `evaluation`.

    Runs with several evaluations, or none, are skipped; a damaged summary is reported and ignored.

    Args:
        run: Directory of the other run.
        preset: Name of the preset.
        workspace: Where its runs are.
    """
    for directory in sorted(workspace.runs.glob(f"*-{preset}"), reverse=True):
        if directory.name >= run.name:
            continue
        try:
            summary = read_summary(directory)
        except DamagedStateError as error:
            print(f"ignored: {error}", file=sys.stderr)
            continue
        if summary is None or summary.get("preset") != preset:
            continue
        evaluations = of_stage(EVALUATING, summary["stages"])
        if len(evaluations) == 1:
            return {"run": directory.name, "evaluation": summary["stages"][evaluations[0]]["key"]}
    return None


def _last_run(summary: Mapping[str, Any], store: ArtifactStore) -> LastRun | None:
    """Return the last run with its evaluation; none where there was none, or its evaluation is no longer in the store."""
    named = summary.get("last_run")
    reference = None if named is None else store.find(EVALUATING, named["evaluation"])
    if named is None or reference is None:
        return None
    path = store.fetch(reference, only=EVALUATION) / EVALUATION
    return LastRun(
        named["run"], read_evaluation(path, "delete the artifact: the run before this one is then not compared")
    )


def rebuild_report(run_directory: Path, workspace: Workspace) -> Path:
    """Write the report of a finished run again and return its path.

    Raises:
        ConfigError: There is no such run, or it did not finish.
        DamagedStateError: Its summary or configuration cannot be read.
        StoreError: An artifact of the run is no longer in the store.
    """
    with finished_run(run_directory, workspace) as (summary, config, references, store):
        path = run_directory / "report.html"
        build_report(path, summary=summary, config=config, references=references, store=store)
    return path.resolve()


@contextmanager
def finished_run(
    run_directory: Path, workspace: Workspace
) -> Iterator[tuple[dict[str, Any], RunConfig, dict[str, Reference], ArtifactStore]]:
    """Open a finished run: its summary, its configuration, the artifact of each node, and the store they are in.

    Raises:
        ConfigError: There is no such run, or it did not finish.
        DamagedStateError: Its summary or configuration cannot be read.
        StoreError: An artifact of the run is no longer in the store.
    """
    summary, settings = read_summary(run_directory), read_settings(run_directory)
    if summary is None or settings is None:
        missing = "summary.json" if summary is None else "config.json"
        raise ConfigError(f"run {run_directory}: no {missing} there; name the directory of a run that finished")
    try:
        config = validate(RunConfig, settings)
    except ConfigError as error:
        raise ConfigError(
            f"{run_directory / 'config.json'}: invalid in this version: {str(error).splitlines()[0]}; run the preset again: "
            "its results are in the store"
        ) from error
    with services(workspace) as around:
        store = around.artifact_store(workspace)
        references = {}
        for name, node in summary["stages"].items():
            found = store.find(stage_of(name), node["key"])
            if found is None:
                raise StoreError(f"artifact {node['artifact']} is gone: run the preset {config.preset} again")
            references[name] = found
        yield summary, config, references, store
