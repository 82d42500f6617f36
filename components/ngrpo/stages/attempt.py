"""One process that does the work of a stage: a try in the pod of a step, or one of the nodes of a job.

The task is its argument or, in the pod of a step, its standard input. Its exit code is 0 on success; 2 if settings are wrong, so that
another try would fail too; 75 if it was told to stop; and 1 after any other failure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from ngrpo.environment import adopt_s3_names, redacted
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.stages.context import Deployer
from ngrpo.stages.execution import run_task
from ngrpo.stages.supervision import NEVER_AGAIN, QUIET
from ngrpo.stages.task import Task


def run(text: str, elsewhere: Callable[[Task], None] | None = None, deploy: Deployer | None = None) -> None:
    """Do a task in this process, and exit after a failure that the user can fix.

    Args:
        text: The task as JSON.
        elsewhere: See `run_task`.
        deploy: See `run_task`.
    """
    os.environ.update(QUIET)  # a node of a job is not started by one of our processes
    adopt_s3_names()
    task = Task(**json.loads(text))
    try:
        run_task(task, elsewhere, deploy=deploy)
    except NGRPOError as error:
        print(f"{task.node_name}: {redacted(str(error))}", file=sys.stderr, flush=True)
        sys.exit(NEVER_AGAIN if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read())
