"""Detect placeholder files: Git LFS pointers, and web pages that were downloaded instead of a file."""

from __future__ import annotations

from pathlib import Path

_HEAD = 64
"""Number of bytes to inspect."""


def placeholder(path: Path) -> str | None:
    """Return what kind of placeholder a file is, with the cure, or None if it is an ordinary file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD).lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "a pointer of Git LFS in place of the file; fetch it with `git lfs pull`"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page in place of the file; download it again, from the address of the file itself"
    return None
