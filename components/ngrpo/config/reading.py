"""Presets, overrides, and errors that name the field, the value and what is allowed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ngrpo.config.run import RunConfig
from ngrpo.environment import CREDENTIAL, redacted
from ngrpo.errors import ConfigError
from ngrpo.section import Section

S = TypeVar("S", bound=Section)


def load_config(preset: Path, overrides: Sequence[str] = (), cluster: Path | None = None) -> RunConfig:
    """Read a preset and apply overrides.

    Args:
        preset: TOML file; its stem becomes `preset` of the configuration.
        cluster: TOML file with the section `cluster`, in place of the preset's.
        overrides: Settings of the form `section.field=value`. A value is read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: The file is missing or is not TOML, or a setting is unknown or impossible. The message names the
            field, the value and what is allowed.
    """
    tree = read_toml("preset", preset)
    tree["preset"] = preset.stem
    if cluster is not None:
        tree["cluster"] = read_toml("cluster", cluster)
    for override in overrides:
        _apply(tree, override)
    return validate(RunConfig, tree)


def read_toml(what: str, path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        what: What the file is, for the message.
        path: The file.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {str(path)!r}: no such file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} {str(path)!r}: not TOML: {error}") from error


def validate(section: type[S], tree: Mapping[str, Any]) -> S:
    """Validate a tree of settings.

    Raises:
        ConfigError: One line a faulty field: its path, what is wrong with it and the value given.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"([a-z0-9_.\-]+)=(.*)", override, re.DOTALL)
    if match is None:
        raise ConfigError(f"override {redacted(repr(override))}: expected section.field=value")
    *parents, leaf = match[1].split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {redacted(repr(override))}: {name!r} is a value, not a section")
    try:
        node[leaf] = json.loads(match[2])
    except json.JSONDecodeError:
        node[leaf] = match[2]


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "configuration"
    # pydantic puts the kind of a source into the path of its settings.
    path = re.sub(r"^(data\.(?:train|warm_start|benchmarks\.[^.]+)|(?:model\.)?source)\.[a-z_]+", r"\1", path)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting{_value(path, item['input'])}; see the fields of its section"
    if item["type"] == "missing":
        return f"{path}: missing; this setting has no default"
    if item["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message}{_value(path, item['input'])}"


def _value(path: str, value: Any) -> str:
    """Return a value for a message; not where somebody may have put a credential."""
    secret = path.startswith(("cluster.environment", "cluster.secrets")) or CREDENTIAL.search(path)
    return "" if secret else f" (value {redacted(repr(value))})"
