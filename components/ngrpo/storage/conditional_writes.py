"""Whether an object store honours conditional writes, without which there can be no lock."""

from __future__ import annotations

import uuid

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore


def require_conditional_writes(objects: ObjectStore, folder: str) -> None:
    """Make sure that the store refuses a write on the condition of no object, or of another one, than the existing one.

    Both are tried on a temporary object.

    Args:
        objects: The store.
        folder: Folder of that object.

    Raises:
        StoreError: The store ignores such a condition, or cannot be reached.
    """
    key = f"{folder}/probe-{uuid.uuid4().hex}"
    ignored = _ignored_condition(objects, key)
    objects.delete(key)
    if ignored is not None:
        raise StoreError(
            f"object store {objects.uri}: ignores {ignored}, so that two processes could both change the champion: nobody is promoted "
            "there; use a service that keeps conditions of writes (Amazon S3, Cloudflare R2, MinIO, SeaweedFS 4), or a newer release"
        )


def _ignored_condition(objects: ObjectStore, key: str) -> str | None:
    """Return the header that the store ignores; none if it honours both conditions."""
    first, second, third = (f"{key} {number}".encode() for number in range(3))
    objects.put_bytes(first, key, if_none_match=True)
    found = objects.get_tagged(key)
    if found is None or found[0] != first:
        raise StoreError(f"object store {objects.uri}: does not give back what was just written; see its log")
    if objects.put_bytes(second, key, if_none_match=True):
        return "If-None-Match"
    objects.put_bytes(second, key)
    return None if objects.swap(third, key, found[1]) is None else "If-Match"
