"""One digest for the files of a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(directory: Path) -> str:
    """Return the sha256 over relative path and sha256 of every file of a model: equal where paths and bytes are."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    entries = [[path.relative_to(directory).as_posix(), file_sha256(path)] for path in files]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()
