"""Check that an object store supports conditional writes, which locks depend on."""

from __future__ import annotations

import uuid

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore


def require_conditional_writes(objects: ObjectStore, folder: str) -> None:
    """Check that the store refuses `If-None-Match: *` writes to existing objects and `If-Match` writes with another ETag.

    Both are tried on a temporary object.

    Args:
        objects: The store.
        folder: Folder for the temporary object.

    Raises:
        StoreError: The store ignores one of the conditions, or cannot be reached.
    """
    key = f"{folder}/probe-{uuid.uuid4().hex}"
    ignored = _ignored_condition(objects, key)
    objects.delete(key)
    if ignored is not None:
        raise StoreError(
            f"object store {objects.uri}: ignores {ignored}, so that two processes could both change the champion: no model is promoted "
            "there; use a service that supports conditional writes (Amazon S3, Cloudflare R2, MinIO, SeaweedFS 4), or a newer release"
        )


def _ignored_condition(objects: ObjectStore, key: str) -> str | None:
    """Return the header that the store ignores, or None if it supports both."""
    first, second, third = (f"{key} {number}".encode() for number in range(3))
    objects.put_bytes(first, key, if_none_match=True)
    found = objects.get_tagged(key)
    if found is None or found[0] != first:
        raise StoreError(f"object store {objects.uri}: does not return what was just written; see its log")
    if objects.put_bytes(second, key, if_none_match=True):
        return "If-None-Match"
    objects.put_bytes(second, key)
    return None if objects.swap(third, key, found[1]) is None else "If-Match"
