"""Digests of files and directories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory, by relative path."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): file_sha256(path) for path in files}


def digest_of(files: Mapping[str, str]) -> str:
    """Return one sha256 over the relative paths and sha256 of files."""
    return hashlib.sha256(json.dumps(sorted([*entry] for entry in files.items())).encode()).hexdigest()


def model_digest(directory: Path) -> str:
    """Return one digest of all files of a model; equal if all paths and contents are equal."""
    return digest_of(file_digests(directory))
