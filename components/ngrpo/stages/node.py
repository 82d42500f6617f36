"""One node of a stage that several nodes work on: what the pods of its job run (see `ngrpo.stages.train_job`)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ngrpo.environment import redacted
from ngrpo.errors import NGRPOError
from ngrpo.stages.execution import execute
from ngrpo.stages.task import Task


def _execute(task: Task) -> None:
    """Execute the stage as one of the job's nodes."""
    work = Path(os.environ["NGRPO_WORK_DIR"])
    inputs = {name: work / f"{name}.json" for name in task.inputs}
    work.mkdir(parents=True, exist_ok=True)
    for name, path in inputs.items():
        path.write_text(task.inputs[name], encoding="utf-8")
    try:
        execute(
            task.stage,
            config_json=task.config_json,
            key=task.key,
            code_version=task.code_version,
            inputs={name: str(path) for name, path in inputs.items()},
            output=str(work / "reference.json"),
        )
    except NGRPOError as error:
        sys.exit(f"{task.stage}: {redacted(str(error))}")


if __name__ == "__main__":
    _execute(Task(**json.loads(sys.argv[1])))
