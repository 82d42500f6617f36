"""MLflow's server in one process, `python -m ngrpo_kfp.pipelines.local.mlflow_server server …`, with the options of `mlflow server`.

MLflow itself imports everything twice: it looks at the options and the database in one process, and serves in another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import uvicorn.main  # before MLflow's server, which only then keeps other sites' pages out (their host names and origins)

from ngrpo.checking.light_imports import UNUSED_WITHOUT_TABLES, light_imports

_PYTHON = 3
"""Words before uvicorn's own: Python, -m, uvicorn."""


def _serve(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    """Be the process that MLflow would start."""
    os.environ.update(extra_env)
    uvicorn.main.main(command[_PYTHON:], prog_name="uvicorn")
    raise SystemExit  # which click does


def main() -> None:
    """Run MLflow's command line."""
    with light_imports(UNUSED_WITHOUT_TABLES):
        import mlflow.server
        from mlflow.cli import cli
    mlflow.server._exec_cmd = _serve
    cli()


if __name__ == "__main__":
    main()
