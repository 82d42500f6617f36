"""The result of one check of the cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check of the cluster."""

    name: str
    """What was checked: a setting (`cluster.queue`), an image (`images.gpu`) or an object (`namespace`)."""
    ok: bool | None
    """Whether it is right; None if it could not be checked."""
    said: str
    """What was seen, one line."""
    cure: str | None = None
    """What to do if it is not right."""
