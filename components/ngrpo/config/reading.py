"""Presets, overrides, and errors that name the field, the value and what is allowed."""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ngrpo.config.located import locate
from ngrpo.config.run import DISAGREEMENT, RunConfig
from ngrpo.config.sources import ONE, SEVERAL
from ngrpo.config.text_files import read_text
from ngrpo.environment import CREDENTIAL, redacted
from ngrpo.errors import ConfigError
from ngrpo.section import Section, check_name, name_of

S = TypeVar("S", bound=Section)

_PART = r"""[A-Za-z0-9_-]+|"[^"]+\""""
_OVERRIDE = re.compile(rf"((?:{_PART})(?:\.(?:{_PART}))*)=(.*)", re.DOTALL)
_SECRET = re.compile(r"cluster\.(environment|secrets)(\.|$)")
"""Settings whose values are not shown: somebody may have put a credential there."""

_RENAMED: Mapping[str, str] = {
    "data.max_prompt_length": "data.max_prompt_tokens",
    "mixing.rho": "mixing.rate",
    "rollout.max_completion_length": "rollout.max_tokens",
    "rollout.num_generations": "rollout.group_size",
    "training.beta": "training.kl_coefficient",
    "training.epsilon": "training.clip_epsilon",
    "training.lr_scheduler_type": "training.lr_scheduler",
    "training.max_steps": "training.steps",
    "training.reward_funcs": "training.rewards",
    "training.reward_weights": "training.rewards",
    "warm_start.max_length": "warm_start.max_tokens",
    "warm_start.max_steps": "warm_start.steps",
}
"""Settings by names that they no longer have, or that TRL and the paper have for them. Whoever renames a setting adds its old name."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120


def load_config(preset: Path, overrides: Sequence[str] = (), cluster: Path | None = None) -> RunConfig:
    """Read a preset and apply overrides.

    Args:
        preset: TOML file; its stem, a name, becomes `preset` of the configuration.
        cluster: TOML file with the section `cluster`, in place of the preset's.
        overrides: Settings of the form `section.field=value`, the last of one field counts. A value is read as JSON where it is JSON,
            else as text; a part of the field with other characters than letters, digits, `_` and `-` stands in double quotes.

    Raises:
        ConfigError: A file cannot be read or is not TOML, or settings are unknown or impossible. The message has a line for each: the
            field, the value and what is allowed.
    """
    try:
        check_name(preset.stem)
    except ValueError as error:
        raise ConfigError(f"preset {str(preset)!r}: {error}; rename the file") from error
    tree = locate(read_toml("preset", preset), preset.parent)
    tree["preset"] = preset.stem
    if cluster is not None:
        tree["cluster"] = read_toml("cluster", cluster)
    problems = []
    for override in overrides:
        try:
            _apply(tree, override)
        except ConfigError as error:
            problems.append(str(error))
    try:
        config = validate(RunConfig, tree)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with other settings; see `load_config`.

    Raises:
        ConfigError: A setting is unknown or impossible.
    """
    tree = config.model_dump(mode="json")
    for each in overrides:
        _apply(tree, each)
    return validate(RunConfig, tree)


def read_toml(what: str, path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        what: What the file is, for the message.
        path: The file.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    return parse_toml(what, path, read_text(what, path))


def parse_toml(what: str, path: Path, text: str) -> dict[str, Any]:
    """Parse the text of a TOML file; see `read_toml`."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # a TOMLDecodeError, or a number with too many digits
        raise ConfigError(f"{what} {str(path)!r}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{what} {str(path)!r}: not TOML: nested too deeply; settings have a few levels") from error


def validate(section: type[S], tree: Mapping[str, Any]) -> S:
    """Validate a tree of settings.

    Raises:
        ConfigError: One line a faulty field: its path, what is wrong with it and the value given.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        lines = [line for item in error.errors(include_url=False) for line in _explain(item)]
        # What several sections hold to be wrong in the same words is one fault.
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    shown = _show(override)
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise ConfigError(f"override {shown}: expected section.field=value")
    *parents, leaf = (part.strip('"') for part in re.findall(_PART, match[1]))
    node = tree
    for name in parents:
        node = node.setdefault(_key(node, name), {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {shown}: {name!r} is a value, not a section")
    try:
        value = json.loads(match[2], object_pairs_hook=_once, parse_int=_integer)
    except json.JSONDecodeError:
        value = match[2]
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"override {shown}: the value cannot be: {what}") from error
    node[_key(node, leaf)] = value


def _key(node: Mapping[str, Any], name: str) -> str:
    """Return the key of a table that is spelled like a name, or is another spelling of it."""
    return name if name in node else next((key for key in node if name_of(key) == name_of(name)), name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a table has a key twice; leave one")
    return table


def _integer(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError(f"a number of {len(digits)} digits is none that a setting takes")
    return int(digits)


def _explain(item: Any) -> list[str]:
    """Return the lines that say what is wrong; several where a section says so of itself."""
    message: str = item["msg"].removeprefix("Value error, ")
    if item["type"] == DISAGREEMENT:
        return message.splitlines()
    path = ".".join(_part(part) for part in item["loc"] if part not in ("[key]", ONE)) or "configuration"
    # pydantic puts the kind of a source into the path of its settings.
    path = re.sub(
        rf"^(data\.(?:train(?:\.{re.escape(SEVERAL)}\.[^.]+)?|warm_start|benchmarks\.[^.]+)|(?:model\.)?source)\.[a-z_]+",
        r"\1",
        path,
    ).replace(f".{SEVERAL}", "")
    secret = _SECRET.match(path) or CREDENTIAL.search(path)
    value = "" if secret else f" (value {_show(item['input'])})"
    if item["type"] == "extra_forbidden" and path in _RENAMED:
        return [f"{path}: unknown setting{value}; it is called {_RENAMED[path]}"]
    if item["type"] == "extra_forbidden":
        return [f"{path}: unknown setting{value}; see the fields of its section"]
    if item["type"] == "missing":
        return [f"{path}: missing; this setting has no default"]
    if item["type"] == "value_error" and not isinstance(item["input"], str | int | float):
        return [f"{path}: {line}" for line in message.splitlines()]
    return [f"{path}: {message}{value}"]


def _part(part: str | int) -> str:
    """Return a part of a path, quoted where it is no field or name."""
    text = str(part)
    return text if text.isprintable() and 0 < len(text) < 100 else _show(text)


def _show(value: Any) -> str:
    """Return a value for a message: not all of it, and without credentials."""
    return redacted(_short.repr(value))
