"""MLflow's user interface over a database file, for as long as it is looked at."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngrpo.errors import TrackingError
from ngrpo.tracking.database import prepare_database

_SECONDS_TO_START = 90.0
_SECONDS_TO_STOP = 10.0


def ui_command(tracking_uri: str, artifact_location: str, host: str, port: int) -> list[str]:
    """Return the command of an MLflow server that reads artifacts where they are.

    Args:
        tracking_uri: `sqlite:///path` of the database.
        artifact_location: Where experiments that are made in the user interface keep their artifacts.
        host: Address to listen at.
        port: Port to listen at.
    """
    storage = [
        "--backend-store-uri",
        tracking_uri,
        "--default-artifact-root",
        artifact_location,
        "--no-serve-artifacts",
    ]
    return [
        *(sys.executable, "-m", "mlflow", "server", *storage),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


@contextmanager
def serve_ui(
    tracking_uri: str, artifact_location: str, *, log: Path, host: str = "127.0.0.1", port: int = 5000
) -> Iterator[str]:
    """Serve a database while the context is open and yield the address; another port is taken where `port` is in use.

    Args:
        tracking_uri: `sqlite:///path` of the database.
        artifact_location: Where experiments that are made in the user interface keep their artifacts.
        log: File for the server's output.
        host: Address to listen at; the server asks nobody for a password.
        port: Port to listen at, if it is free.

    Raises:
        TrackingError: The database cannot be used, or the server does not start.
    """
    prepare_database(tracking_uri)
    port = _free_port(host, port)
    address = f"http://{host}:{port}"
    # The server would start further processes for jobs (evaluations of language models) that nothing here uses.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            ui_command(tracking_uri, artifact_location, host, port),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # its workers are its group: they are ended together
        )
    try:
        _wait_until_up(server, address, log)
        yield address
    finally:
        _stop(server)


def _free_port(host: str, port: int) -> int:
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                problem = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise TrackingError(f"no port of {host} can be listened at: {problem}")


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1.0).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    raise TrackingError(f"the MLflow server at {address} does not start: see {log}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
