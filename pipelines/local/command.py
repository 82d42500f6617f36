"""`ngrpo exec`: run a command of the user while the services of the workspace run and are set in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.local.interrupted import Interrupted
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace


def run_command(command: Sequence[str], workspace: Workspace) -> int:
    """Run a command with the workspace's object store and MLflow, and return its exit code, or 128 + n after signal n.

    It finds them like any client of S3 and MLflow (`AWS_ENDPOINT_URL`, `MLFLOW_TRACKING_URI`, …), and the programs beside this Python by
    name.

    Args:
        command: The command and its arguments.
        workspace: The workspace with the services.

    Raises:
        ConfigError: The command is missing or cannot be run.
        StoreError: The embedded store does not start.
    """
    if not command[0]:
        raise ConfigError("exec: no command; name one, with its arguments")
    mask = os.umask(0)
    os.umask(mask)
    with services(workspace):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        try:
            # `services` sets a private umask; files of the user's command get the user's own.
            process = subprocess.Popen(command, env=os.environ | {"PATH": path}, umask=mask)
        except OSError as error:
            raise ConfigError(
                f"exec: {command[0]!r} cannot be run: {error.strerror}; name a command that exists"
            ) from error
        while True:
            try:
                code = process.wait()
                break
            except Interrupted as stop:
                process.send_signal(stop.number)
            except KeyboardInterrupt:
                continue  # a terminal tells the command too, which ends in its own way
    return 128 - code if code < 0 else code
