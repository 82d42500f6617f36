"""Presets that build on another preset: how their settings are merged, and which file a setting came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ngrpo.section import name_of


def merge(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a preset with those of the preset that it extends.

    Tables are merged; values and lists replace what was inherited. So does a table of another `kind`: what it inherited are settings of
    another thing. `NAME = false` removes an inherited table. Neither tree is changed.

    Args:
        inherited: Settings of the preset that is extended.
        own: Settings of the preset that extends it.
    """
    merged = dict(inherited)
    for name, value in own.items():
        key = key_of(merged, name)
        before = merged.get(key)
        if isinstance(before, dict) and value is False:
            del merged[key]
        elif isinstance(before, dict) and isinstance(value, dict) and not _of_another_kind(before, value):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged


def key_of(table: Mapping[str, Any], name: str) -> str:
    """Return the key of a table that is spelled like a name, or is another spelling of it; else the name."""
    return name if name in table else next((key for key in table if name_of(key) == name_of(name)), name)


def origin(line: str, trees: Sequence[tuple[Path, Mapping[str, Any]]]) -> Path | None:
    """Return the file that has the setting which a line of an error is about, or the nearest table around it.

    Args:
        line: Begins with the path of the setting, `training.steps: …` or `training.steps=3 …`.
        trees: Files with their settings; of several that have the setting the first counts.

    Returns:
        None if no file has any part of it.
    """
    path = line.partition(" ")[0].partition("=")[0].rstrip(":")
    found = [(_depth(tree, path.split(".")), file) for file, tree in trees]
    deepest = max((depth for depth, _ in found), default=0)
    return next((file for depth, file in found if depth == deepest), None) if deepest else None


def _of_another_kind(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Say whether two tables are of different kinds, or one is of a kind and the other a table of such (`data.train`)."""
    if "kind" in before and "kind" in after:
        return bool(before["kind"] != after["kind"])
    return ("kind" in before and _of_several(after)) or ("kind" in after and _of_several(before))


def _of_several(table: Mapping[str, Any]) -> bool:
    return bool(table) and all(isinstance(each, dict) and "kind" in each for each in table.values())


def _depth(tree: Any, path: Sequence[str]) -> int:
    """Return how many parts of a path a tree has."""
    return sum(1 for _ in _down(tree, path))


def _down(tree: Any, path: Sequence[str]) -> Iterator[Any]:
    for part in path:
        if not isinstance(tree, dict) or key_of(tree, part) not in tree:
            return
        tree = tree[key_of(tree, part)]
        yield tree
