"""Find stored copies of replaced services that no rollback needs any more."""

from __future__ import annotations

from collections.abc import Mapping

from ngrpo.contracts.deployment import REPLACED
from ngrpo.stages.tries import Try, tries_of
from ngrpo.storage.objects import ObjectStore

_STAGE = "deploy"


def superseded_deployments(objects: ObjectStore, tags: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Return key and size in bytes of each stored service that is not the newest of its name.

    The stage `deploy` stores the service that it replaces, so that a later try can restore it if the pod was lost. The newest of each name
    is kept: it was served last, or is still served if the deployment was refused. So is one whose run may still be running.

    Args:
        objects: The artifact store.
        tags: ETag and size of each object in it (`ObjectStore.tags`).

    Raises:
        DamagedStateError: The record of a try cannot be read.
        StoreError: The store cannot be reached.
    """
    kept: dict[str, list[tuple[Try, str]]] = {}
    for key in tags:
        folder, *parts = key.split("/")
        if folder == REPLACED and len(parts) == 2:
            run, service = parts
            tries = tries_of(objects, _STAGE, run)
            if tries:
                kept.setdefault(service, []).append((tries[-1], key))
    found: dict[str, int] = {}
    for services in kept.values():
        older = sorted(services, key=lambda one: one[0].name)[:-1]
        found |= {key: tags[key][1] for last, key in older if last.outcome != "running"}
    return found
