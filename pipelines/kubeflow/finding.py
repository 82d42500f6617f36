"""What one look at the cluster has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What became of one look at the cluster."""

    name: str
    """What was looked at: a setting (`cluster.queue`), an image (`images.gpu`) or an object (`namespace`)."""
    ok: bool | None
    """Whether it is as it should be; none where it could not be looked up."""
    said: str
    """What was seen, one line."""
    cure: str | None = None
    """What to do, where it is not as it should be."""
