"""Object storage and tracking for a run on this machine: those that the environment names, or embedded ones."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ngrpo.environment import environment
from ngrpo.errors import StoreError
from ngrpo.stages.surroundings import STORE_IS_LOCAL
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve
from ngrpo_kfp.pipelines.runtime.workspace import Workspace

_DEFAULT_STORE = "s3://ngrpo/artifacts"
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "NGRPO_STORE")
_SECONDS_TO_START = 30.0


@dataclass(frozen=True)
class Services:
    """Where artifacts and records go."""

    store_uri: str
    """`s3://bucket/prefix` of the artifacts."""
    tracking_uri: str
    """Address of MLflow."""
    artifact_location: str | None
    """Where MLflow keeps artifacts; none where its server decides."""
    owns_database: bool
    """Whether MLflow is the database file of the workspace."""
    joined: bool
    """Whether the embedded store is that of another process, and goes when that process ends."""

    def artifact_store(self, workspace: Workspace) -> ArtifactStore:
        """Open the artifact store, with the workspace's cache.

        Raises:
            StoreError: The service cannot be reached or refuses the credentials, or the bucket is missing.
        """
        objects = ObjectStore(self.store_uri)
        objects.check()
        return ArtifactStore(objects, workspace.cache)


def embeds_store() -> bool:
    """Whether a run brings up its own object store, because the environment names none."""
    return not any(os.environ.get(name) for name in _ENDPOINT_VARIABLES)


@contextlib.contextmanager
def services(workspace: Workspace) -> Iterator[Services]:
    """Provide object storage and tracking while the context is open; this process can reach them too.

    An object store is embedded unless `AWS_ENDPOINT_URL` or `NGRPO_STORE` is set; MLflow is a database file of the workspace
    unless `MLFLOW_TRACKING_URI` is set.

    Raises:
        StoreError: The embedded store does not start.
    """
    store_uri = os.environ.get("NGRPO_STORE") or _DEFAULT_STORE
    bucket = store_uri.removeprefix("s3://").partition("/")[0]
    given = os.environ.get("MLFLOW_TRACKING_URI")
    tracking_uri = given or f"sqlite:///{workspace.database}"
    variables = {
        "NGRPO_STORE": store_uri,
        "NGRPO_CACHE_DIR": str(workspace.cache),
        "NGRPO_WORK_DIR": str(workspace.work),
        STORE_IS_LOCAL: None,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_RUN_ID": None,  # a run that the shell has open is not that of our stages
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with contextlib.ExitStack() as stack:
        joined = False
        if embeds_store():
            endpoint, joined = stack.enter_context(_embedded_store(workspace))
            variables |= endpoint | {STORE_IS_LOCAL: "1"}
        stack.enter_context(environment(variables))
        yield Services(
            store_uri=store_uri,
            tracking_uri=tracking_uri,
            artifact_location=None if tracking_uri.startswith("http") else f"s3://{bucket}/mlflow",
            owns_database=given is None,
            joined=joined,
        )


def store_is_served(workspace: Workspace) -> bool:
    """Whether a process serves the embedded store of a workspace at this moment."""
    with _store_lock(workspace).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def _embedded_store(workspace: Workspace) -> Iterator[tuple[dict[str, str], bool]]:
    """Serve the workspace's store, or join the process that does: `ngrpo ui` and a run may be up at the same time."""
    path = _store_lock(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    with path.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _joined_store(path), True
            return
        file.truncate()
        with serve(workspace.store) as endpoint:
            variables = endpoint.environment()
            json.dump(variables, file)
            file.flush()
            yield variables, False
            file.truncate(0)


def _joined_store(path: Path) -> dict[str, str]:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        text = path.read_text(encoding="utf-8")
        if text:
            variables: dict[str, str] = json.loads(text)
            return variables
        time.sleep(0.1)
    raise StoreError(f"the object store of {path.parent} is being started by another process but does not come up")


def _store_lock(workspace: Workspace) -> Path:
    return workspace.root / "store.lock"
