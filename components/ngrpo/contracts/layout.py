"""Files with a `layout`, the number of their form: written as they are declared, and checked when they are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from ngrpo.errors import StoreError
from ngrpo.storage.state import DamagedStateError, parse_state

T = TypeVar("T")

LAYOUT: Final = 1
"""The form that this version of the library writes and reads."""


class OtherLayoutError(DamagedStateError):
    """A file was written in another form than this version of the library reads."""


def parse_layout(data: bytes, expected: type[T], *, where: object, cure: str, earlier: bool = False) -> T:
    """Return what a file holds.

    Args:
        data: Content of the file.
        expected: Its type.
        where: Path or address, for the error.
        cure: What to do, for the error.
        earlier: Whether files from before there were layouts, which have no such field, are of this type too.

    Raises:
        OtherLayoutError: It is of another layout.
        DamagedStateError: It is not JSON, or not of the type.
    """
    tree = parse_state(data, dict[str, Any], where=where, cure=cure)
    layout = tree.get("layout", LAYOUT if earlier else None)
    if layout != LAYOUT:
        said = "without a layout" if layout is None else f"of layout {layout!r}"
        raise OtherLayoutError(f"{where}: {said}, but this version of ngrpo reads layout {LAYOUT}; {cure}")
    return parse_state(data, expected, where=where, cure=cure)


def read_layout(path: Path, expected: type[T], *, cure: str, earlier: bool = False) -> T:
    """Return what a file holds; see `parse_layout`.

    Raises:
        StoreError: There is no such file, or it is damaged or of another layout.
    """
    return parse_layout(read_bytes(path, cure), expected, where=path, cure=cure, earlier=earlier)


def read_bytes(path: Path, cure: str) -> bytes:
    """Return the content of a file of an artifact.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing; {cure}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); {cure}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file of an artifact."""
    path.write_text(json.dumps(value), encoding="utf-8")
