"""Run MLflow's server in one process: `python -m ngrpo_kfp.pipelines.local.mlflow_server server …`, with the options of `mlflow server`.

`mlflow server` imports everything twice, because it checks options and database in one process and serves in another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# Import uvicorn first: only then does MLflow's server refuse requests with foreign host names or origins.
import uvicorn.main

from ngrpo.checking.light_imports import UNUSED_WITHOUT_TABLES, light_imports

_PYTHON = 3
"""Number of words before uvicorn's arguments in the command: `python -m uvicorn`."""


def _serve(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    """Serve in this process instead of a child process of MLflow's command."""
    os.environ.update(extra_env)
    uvicorn.main.main(command[_PYTHON:], prog_name="uvicorn")
    raise SystemExit  # not reached: click exits, but its types do not say so


def main() -> None:
    """Run MLflow's command line."""
    with light_imports(UNUSED_WITHOUT_TABLES):
        import mlflow.server
        from mlflow.cli import cli
    mlflow.server._exec_cmd = _serve
    cli()


if __name__ == "__main__":
    main()
