"""Stages that only decide, done by the process of the run: to start one of their own takes longer than they work, and so does kfp."""

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
    """Whether all results that a run computes are in the store, so that nothing but decisions on them is left."""
    return not any(DECLARED[name].cacheable for name in plan.stages_to_run)


def decide(plan: Plan, run_directory: Path) -> Exception | None:
    """Do what is left of a plan that only decides; return the error of a stage that failed, which is in its record and log.

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
            except (
                Exception
            ) as error:  # a defect too: as where the stage has a process, the record says what the user is told
                traceback.print_exc()
                return error
    return None


def _task(node: PlannedStage, made: dict[str, Reference]) -> Task:
    inputs = {name: made[source.worker.name].to_json() for name, source in node.inputs.items()}
    return Task(node.stage, node.config, node.key, node.code_version, inputs, node=node.name)
