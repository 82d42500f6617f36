"""Object storage and tracking for a run on this machine: services that the environment names, or embedded ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ngrpo.environment import environment
from ngrpo.stages.surroundings import STORE_IS_LOCAL
from ngrpo.storage.seaweed import serve
from ngrpo.tracking.addresses import database_uri
from ngrpo_kfp.pipelines.local.store_ahead import embeds_store
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.storage.artifacts import ArtifactStore

_DEFAULT_STORE = "s3://ngrpo/artifacts"


@dataclass(frozen=True)
class Services:
    """Where artifacts and records go."""

    store_uri: str
    """`s3://bucket/prefix` of the artifacts."""
    tracking_uri: str
    """Address of MLflow."""
    artifact_location: str | None
    """Where MLflow keeps artifacts; None if its server decides."""
    owns_database: bool
    """Whether MLflow is the database file of the workspace."""

    def artifact_store(self, workspace: Workspace) -> ArtifactStore:
        """Open the artifact store, with the workspace's cache.

        Raises:
            StoreError: The service cannot be reached or refuses the credentials, or the bucket is missing.
        """
        # Import boto3 while the embedded store starts: both take a while.
        from ngrpo.storage.artifacts import ArtifactStore
        from ngrpo.storage.objects import ObjectStore

        objects = ObjectStore(self.store_uri)
        objects.check()
        return ArtifactStore(objects, workspace.cache)


def tracked_elsewhere() -> bool:
    """Whether MLflow is not the workspace's own, because the environment names another."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


@contextlib.contextmanager
def services(workspace: Workspace, *, stopped: bool = True) -> Iterator[Services]:
    """Provide object storage and tracking while the context is open, also to this process.

    The object store is embedded unless `AWS_ENDPOINT_URL` or `NGRPO_STORE` is set. Any number of processes may use it, and it runs until
    the last of them has ended. MLflow is a database file of the workspace unless `MLFLOW_TRACKING_URI` is set.

    Args:
        workspace: Where embedded services keep their data.
        stopped: Whether the last user waits until the object store has stopped. Not needed after reading only.

    Raises:
        ConfigError: The workspace cannot be created or used.
        StoreError: The embedded store does not start.
    """
    store_uri = os.environ.get("NGRPO_STORE") or _DEFAULT_STORE
    bucket = store_uri.removeprefix("s3://").partition("/")[0]
    given = os.environ.get("MLFLOW_TRACKING_URI")
    tracking_uri = given or database_uri(workspace.database)
    variables = {
        "NGRPO_STORE": store_uri,
        "NGRPO_CACHE_DIR": str(workspace.cache),
        "NGRPO_WORK_DIR": str(workspace.work),
        STORE_IS_LOCAL: None,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_RUN_ID": None,  # an MLflow run of the user's shell is not the run of these stages
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(workspace.private())
        if embeds_store():
            variables |= stack.enter_context(serve(workspace.store, stopped=stopped)).environment() | {
                STORE_IS_LOCAL: "1"
            }
        stack.enter_context(environment(variables))
        yield Services(
            store_uri=store_uri,
            tracking_uri=tracking_uri,
            artifact_location=None if tracking_uri.startswith("http") else f"s3://{bucket}/mlflow",
            owns_database=given is None,
        )
