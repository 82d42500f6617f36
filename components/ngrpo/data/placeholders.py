"""Files that stand where another one should be: what `git clone` without LFS leaves, and pages that were downloaded in place of a file."""

from __future__ import annotations

from pathlib import Path

_HEAD = 64
"""Bytes that tell."""


def placeholder(path: Path) -> str | None:
    """Say what a file is that only stands for another one, and what to do; none if it is a file like any other.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD).lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "a pointer of Git LFS in place of the file; fetch it with `git lfs pull`"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page in place of the file; download it again, from the address of the file itself"
    return None
