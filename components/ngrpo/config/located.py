"""Texts of a preset that name a file: relative to the preset, wherever the command is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Located(str):
    """A text of a file, which knows the directory of the file."""

    directory: Path


def locate(tree: Any, directory: Path) -> Any:
    """Return settings with every text as a `Located` one of `directory`; names of settings stay as they are."""
    if isinstance(tree, dict):
        return {name: locate(value, directory) for name, value in tree.items()}
    if isinstance(tree, list):
        return [locate(value, directory) for value in tree]
    if type(tree) is str:
        text = Located(tree)
        text.directory = directory
        return text
    return tree


def absolute(text: str) -> str:
    """Return a path as an absolute one: relative to the file that it stands in, or else to the current directory."""
    return os.path.abspath(_directory(text) / os.path.expanduser(text))


def relative_to(text: str) -> str:
    """Say what a path is relative to, for messages."""
    where = "the directory of the preset" if isinstance(text, Located) else "the current directory"
    return f"a path is relative to {where}, {os.path.abspath(_directory(text))}"


def _directory(text: str) -> Path:
    return text.directory if isinstance(text, Located) else Path()
