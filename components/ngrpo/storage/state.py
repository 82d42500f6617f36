"""State on disk or in object storage: written atomically, and validated against its type when it is read.

A state file may have been truncated by a full disk, edited by hand or written by another version. In all these cases the reader gets a
`DamagedStateError` that names the file, the problem and the cure.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from ngrpo.errors import StoreError
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.whole_files import written_whole

T = TypeVar("T")


class DamagedStateError(StoreError):
    """Stored state cannot be read: it is empty, truncated, not UTF-8, not JSON, or not of the expected type."""


def parse_state(data: bytes, expected: type[T], *, where: object, cure: str) -> T:
    """Return state that was stored as JSON.

    Args:
        data: The stored bytes.
        expected: The expected type, validated by pydantic in strict mode: a model, `dict[str, str]`, a `typing_extensions.TypedDict`
            (pydantic does not support `typing.TypedDict` before Python 3.12).
        where: Path or address, for the error.
        cure: What to do about damage, for the error.

    Raises:
        DamagedStateError: The data is not JSON in UTF-8, or not of the expected type.
    """
    try:
        tree = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        what = "it is empty" if not data.strip() else f"it is not JSON ({error})"
        raise DamagedStateError(f"{where}: damaged: {what}; {cure}") from error
    try:
        # JSON has no tuples, and does not distinguish 1 from 1.0. Pydantic's strict mode for JSON input allows for that.
        state: T = _validator(cast("Hashable", expected)).validate_json(json.dumps(tree, allow_nan=False), strict=True)
    except (ValidationError, ValueError) as error:
        raise DamagedStateError(f"{where}: damaged: {_problem(error)}; {cure}") from error
    return state


@cache
def _validator(expected: Any) -> TypeAdapter[Any]:
    """Cached, because a plan reads hundreds of files of a few types, and building a validator is slower than using it."""
    return TypeAdapter(expected)


def read_state(path: Path, expected: type[T], *, cure: str) -> T | None:
    """Return the state in a file, or None if the file does not exist.

    Args:
        path: The file.
        expected: See `parse_state`.
        cure: See `parse_state`.

    Raises:
        DamagedStateError: The file cannot be read, or its content is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedStateError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    return parse_state(data, expected, where=path, cure=cure)


def write_state(path: Path, value: Any) -> None:
    """Write a value as JSON with mode 0600, atomically: a reader sees the old file or the new one, even after a power failure.

    Raises:
        StoreError: The file cannot be written; the old file is unchanged.
    """
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically (see `write_state`).

    Raises:
        StoreError: The file cannot be written; the old file is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({disk_trouble(error, path.parent, needed=len(data))})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _problem(error: ValueError) -> str:
    """Describe a validation error briefly, without values, which may be secret."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    place = place if place.isprintable() else ascii(place)  # names in damaged state can contain any character
    return f"{place}: {first['msg']}" if place else str(first["msg"])
