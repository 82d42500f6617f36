"""State on disk or in object storage: written whole or not at all, and checked against its type when it is read back.

A file of state may have been cut by a full disk, edited by hand or written by another version. Whatever is wrong with it, the reader
gets one `DamagedStateError` that names the file, what is wrong and the cure.
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
    """State that was written earlier cannot be read: it is empty, cut, not UTF-8, not JSON, or not of its type."""


def parse_state(data: bytes, expected: type[T], *, where: object, cure: str) -> T:
    """Return state that was stored as JSON.

    Args:
        data: What was stored.
        expected: Its type, as pydantic validates it in strict mode: a model, `dict[str, str]`, a `typing_extensions.TypedDict`
            (before Python 3.12 pydantic takes no other).
        where: Path or address, for the error.
        cure: What to do about damage, for the error.

    Raises:
        DamagedStateError: The data is not JSON in UTF-8, or not of the type.
    """
    try:
        tree = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        what = "it is empty" if not data.strip() else f"it is no JSON ({error})"
        raise DamagedStateError(f"{where}: damaged: {what}; {cure}") from error
    try:
        # JSON knows no tuples and no integers apart from floats: strict mode for JSON input allows for that.
        state: T = _validator(cast("Hashable", expected)).validate_json(json.dumps(tree, allow_nan=False), strict=True)
    except (ValidationError, ValueError) as error:
        raise DamagedStateError(f"{where}: damaged: {_problem(error)}; {cure}") from error
    return state


@cache
def _validator(expected: Any) -> TypeAdapter[Any]:
    """A plan reads hundreds of files of a few types, and to build a validator takes longer than to use it."""
    return TypeAdapter(expected)


def read_state(path: Path, expected: type[T], *, cure: str) -> T | None:
    """Return the state in a file; none where there is no such file.

    Args:
        path: The file.
        expected: See `parse_state`.
        cure: See `parse_state`.

    Raises:
        DamagedStateError: The file cannot be read, or is not what was written.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedStateError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    return parse_state(data, expected, where=path, cure=cure)


def write_state(path: Path, value: Any) -> None:
    """Write a value as JSON, with mode 0600, whole or not at all: a reader sees the old file or the new one, also after a power cut.

    Raises:
        StoreError: The file cannot be written; what was there is still there.
    """
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all (see `write_state`).

    Raises:
        StoreError: The file cannot be written; what was there is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({disk_trouble(error, path.parent, needed=len(data))})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _problem(error: ValueError) -> str:
    """Say in a few words what is wrong with a tree; values are left out, for they may be secret."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    place = place if place.isprintable() else ascii(place)  # names in damaged state may hold anything
    return f"{place}: {first['msg']}" if place else str(first["msg"])
