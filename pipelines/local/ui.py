"""`ngrpo ui`: the object store and the MLflow server of a workspace, until interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ngrpo.errors import ConfigError, TrackingError
from ngrpo.report.phases import phase
from ngrpo_kfp.pipelines.local import mlflow_server
from ngrpo_kfp.pipelines.local.services import Services, services
from ngrpo_kfp.pipelines.local.workspace import Workspace, written

_SECONDS_TO_START = 90.0
_SECONDS_TO_STOP = 10.0


def serve_ui(workspace: Workspace, port: int, console: Console) -> None:
    """Serve until interrupted.

    If MLflow is an external server (`MLFLOW_TRACKING_URI`), only its address is printed.

    Args:
        workspace: The workspace to show.
        port: Port of the MLflow server on 127.0.0.1.
        console: Where the addresses are printed.

    Raises:
        ConfigError: The port is taken.
        TrackingError: The server does not start.
    """
    with phase(console, "starting MLflow") as starting, services(workspace) as around:
        if around.tracking_uri.startswith(("http://", "https://")):
            console.print(f"MLflow: {around.tracking_uri}")
            return
        with _mlflow_server(around, port, workspace.root / "ui.log"):
            starting.end()
            console.print(f"MLflow   http://127.0.0.1:{port}")
            console.print(f"objects  {os.environ.get('AWS_ENDPOINT_URL', 'AWS')}  {around.store_uri}")
            console.print("Ctrl-C to stop")
            while True:
                time.sleep(1.0)


@contextlib.contextmanager
def _mlflow_server(around: Services, port: int, log: Path) -> Iterator[None]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another port") from error
    command = [sys.executable, "-m", mlflow_server.__name__, "server", "--backend-store-uri", around.tracking_uri]
    # Clients that know only this server's address read and write files through it, because it has the credentials of the store.
    location = str(around.artifact_location)
    command += ["--default-artifact-root", location, "--serve-artifacts", "--artifacts-destination", location]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with written(log):
        output = log.open("wb")
    with output:
        # No jobs (judges of traces): each of their processes would import all of MLflow.
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | os.environ
        server = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_up(server, port, log)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    raise TrackingError(f"the MLflow server does not start on port {port}: see {log}")
