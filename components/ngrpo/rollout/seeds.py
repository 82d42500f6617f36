"""Seeds of requests: a stable hash of a request's purpose, so that they survive batching, resuming and adding samples."""

from __future__ import annotations

import hashlib


def request_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
