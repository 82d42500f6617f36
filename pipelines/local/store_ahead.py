"""Start the object store of this machine while a command is still importing libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ngrpo.storage.seaweed import starting
from ngrpo_kfp.pipelines.local.workspace import Workspace

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "NGRPO_STORE")


def embeds_store() -> bool:
    """Whether a run starts its own object store, because the environment names none."""
    return not any(os.environ.get(name) for name in _ENDPOINT_VARIABLES)


@contextmanager
def store_ahead(workspace: Workspace, *, stopped: bool = True) -> Iterator[None]:
    """Start an existing object store of a workspace in the background, if a run would start one; `services` then finds it running.

    A workspace without a store is left as it is.

    Args:
        workspace: Workspace of the store.
        stopped: See `services`, which never waits while this context is open.

    Raises:
        ConfigError: The workspace cannot be used.
        StoreError: The store cannot be started.
    """
    if not embeds_store() or not (workspace.exists() and workspace.store.exists()):
        yield
        return
    with workspace.private(), starting(workspace.store, stopped=stopped):
        yield
