"""The marker of a checkpoint, written last, with the digest of every file."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from ngrpo.storage.digest import file_sha256
from ngrpo.storage.state import DamagedStateError, read_state, write_state
from ngrpo.storage.whole_files import sync

MARKER = "complete"
WEIGHTS = ("model", "weights-", "adapter_")
"""Prefixes of files with weights: of transformers, of `shards`, and of PEFT."""
_READERS = 4
"""Files hashed at a time: weights and optimizer moments are most of a checkpoint."""


class Entry(TypedDict):
    """sha256 and size in bytes of a file."""

    sha256: str
    size: int


class _Marker(TypedDict):
    version: Literal[1]
    files: Mapping[str, Entry]


def settled(checkpoint: Path) -> dict[str, Entry]:
    """Return the entries of the files of a checkpoint once they are on disk, by relative path.

    Raises:
        OSError: The disk failed.
    """
    paths = _files(checkpoint)
    with ThreadPoolExecutor(_READERS) as pool:
        entries = dict(zip(paths, pool.map(_settled, paths.values()), strict=True))
    for directory in {path.parent for path in paths.values()}:
        sync(directory)
    return entries


def mark(checkpoint: Path, files: Mapping[str, Entry]) -> None:
    """Mark a checkpoint as complete: its files are on disk before the marker.

    Args:
        checkpoint: The directory.
        files: Result of `settled`, from this node and from others that share the checkpoint.

    Raises:
        StoreError: The marker cannot be written.
    """
    write_state(checkpoint / MARKER, _Marker(version=1, files=files))


def problem(checkpoint: Path, *, weights_alone: bool = False) -> str | None:
    """Return the damage of a checkpoint; none if it matches its marker to the byte.

    Args:
        checkpoint: The directory.
        weights_alone: Check only the weights; other files may be missing.
    """
    try:
        marker = read_state(checkpoint / MARKER, _Marker, cure="an older checkpoint is used")
    except DamagedStateError as error:
        return str(error)
    if marker is None:
        return "its save was not finished"
    paths, entries = _files(checkpoint), dict(marker["files"])
    if weights_alone:
        paths = {name: path for name, path in paths.items() if name.startswith(WEIGHTS)}
        entries = {name: entry for name, entry in entries.items() if name.startswith(WEIGHTS)}
        if not entries:
            return "it has no weights"
    if missing := sorted(entries.keys() - paths.keys()):
        return f"{missing[0]} is missing"
    if added := sorted(paths.keys() - entries.keys()):
        return f"{added[0]} was added"
    for name, path in paths.items():
        if (size := path.stat().st_size) != entries[name]["size"]:
            return f"{name} has {size} bytes, not {entries[name]['size']}"
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            digests = dict(zip(paths, pool.map(file_sha256, paths.values()), strict=True))
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
    changed = [name for name, digest in digests.items() if digest != entries[name]["sha256"]]
    return f"the content of {changed[0]} was changed" if changed else None


def _files(checkpoint: Path) -> dict[str, Path]:
    """Return the files of a checkpoint without its marker, by relative path."""
    paths = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != checkpoint / MARKER)
    return {path.relative_to(checkpoint).as_posix(): path for path in paths}


def _settled(path: Path) -> Entry:
    """Return the entry of a file once it is on disk."""
    sync(path)
    return Entry(sha256=file_sha256(path), size=path.stat().st_size)
