"""The body of a pipeline component: one stage as a step of a pipeline.

On one machine this process does the work. In a pod of a cluster a child process does it, and is started again after a failure
(`ngrpo.stages.supervision`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ngrpo.environment import addresses_without_users, adopt_s3_names
from ngrpo.stages.execution import run_task
from ngrpo.stages.surroundings import NODE, TRIES, Surroundings
from ngrpo.stages.task import Task


def execute(
    stage: str,
    *,
    config_json: str,
    key: str,
    code_version: str,
    inputs: Mapping[str, str],
    output: str,
    metrics: str,
    attempt: str = "ngrpo.stages.attempt",
) -> dict[str, float]:
    """Run a stage as the body of its component, and return its metrics.

    Args:
        stage: Name of the stage.
        config_json: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source, as it is in the key.
        inputs: Reference to the artifact of each input, by its name, as JSON or as the file that holds it.
        output: File to write the reference to the stage's artifact to.
        metrics: File to write the stage's metrics to, as JSON.
        attempt: Module that a try in a pod runs; it reads the task from its standard input.

    Raises:
        SystemExit: In a pod: the last of its tries failed, or it was told to stop (`supervise`).
        NGRPOError: On one machine: see `ngrpo.stages.execution.run_task`.
    """
    task = Task(stage, config_json, key, code_version, dict(inputs), output, metrics, os.environ.get(NODE, ""))
    if os.environ.get(TRIES):
        _supervise(task, attempt, os.environ[TRIES])
    else:
        run_task(task)
    return {name: float(value) for name, value in json.loads(Path(metrics).read_text(encoding="utf-8")).items()}


def _supervise(task: Task, attempt: str, retry: str) -> None:
    from ngrpo.config.cluster import RetryConfig
    from ngrpo.stages.supervision import supervise

    adopt_s3_names()
    with addresses_without_users():
        surroundings = Surroundings.from_environment()
        supervise(
            [sys.executable, "-m", attempt],
            stage=task.stage,
            key=task.key,
            stdin=json.dumps(asdict(task)),
            retry=RetryConfig.model_validate_json(retry),
            store=surroundings.store,
            pipeline_run=surroundings.pipeline_run,
            scratch=surroundings.work,
        )
