"""Stages that only decide, run inside the process of the run: starting a process, or kfp, would take longer than their work."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.execution import run_task
from ngrpo.stages.process import parent_run_id
from ngrpo.stages.task import Task
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.nodes import Plan, PlannedStage


def only_decides(plan: Plan) -> bool:
    """Whether all results of a run are in the store, so that only decisions are left."""
    return not any(DECLARED[name].cacheable for name in plan.stages_to_run)


def decide(plan: Plan, run_directory: Path) -> Exception | None:
    """Run the deciding stages of a plan; return the error of a failed stage, which is in its record and log too.

    Args:
        plan: The plan.
        run_directory: Directory of the run; gets `logs/<node>.log` and `stages/<node>.json`, as from a process.

    Raises:
        TrackingError: The MLflow run of the run could not be opened.
    """
    parent_run_id(run_directory)  # MLflow is imported by whoever opens it
    made = {node.name: node.reference for node in plan if node.reference is not None}
    for node in plan.to_run:
        log = run_directory / "logs" / f"{node.name}.log"
        with (
            log.open("w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            try:
                run_task(_task(node, made), own_process=False)
            # A defect too: the record has the user's message, as for a stage in its own process.
            except Exception as error:
                traceback.print_exc()
                return error
    return None


def _task(node: PlannedStage, made: dict[str, Reference]) -> Task:
    inputs = {name: made[source.worker.name].to_json() for name, source in node.inputs.items()}
    return Task(node.stage, node.config, node.key, node.code_version, inputs, node=node.name)
