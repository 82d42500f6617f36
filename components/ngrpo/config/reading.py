"""Presets, overrides, and errors that name the field, the value and what is allowed."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ngrpo.config.foreign_names import called_here
from ngrpo.config.inheritance import key_of, merge, origin
from ngrpo.config.listing import elsewhere, fields_at, kinds_at
from ngrpo.config.located import locate
from ngrpo.config.run import DISAGREEMENT, RunConfig
from ngrpo.config.sources import ONE, SEVERAL
from ngrpo.config.text_files import read_text
from ngrpo.environment import CREDENTIAL, redacted
from ngrpo.errors import ConfigError
from ngrpo.section import Section, check_name

S = TypeVar("S", bound=Section)

_PART = r"""[A-Za-z0-9_-]+|"[^"]+\""""
_OVERRIDE = re.compile(rf"((?:{_PART})(?:\.(?:{_PART}))*)=(.*)", re.DOTALL)
_SECRET = re.compile(r"cluster\.(environment|secrets)(\.|$)|notifications(\.[^.]+)?(\.url.*)?$")
"""Settings whose values are not shown: somebody may have put a credential there."""

_LEVELS = 30
"""Levels of tables and lists in a file; settings have a few, and options of other libraries some more."""
_OF_FIELD = re.compile(r"\w+(?=[.=]|: )")
"""Begins what a table says of one of its fields."""

_NOT_A_TABLE = ("model_type", "model_attributes_type", "dict_type")
"""Types of pydantic's errors where a table was expected."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120


def load_config(
    preset: Path,
    overrides: Sequence[str] = (),
    cluster: Path | None = None,
    presets: Path | None = None,
    above: Sequence[tuple[Path, Mapping[str, Any]]] = (),
) -> RunConfig:
    """Read a preset and apply overrides.

    Args:
        preset: TOML file; its stem, a name, becomes `preset` of the configuration. With `extends` it builds on another: see `merge`.
        overrides: Settings of the form `section.field=value`, the last of one field counts. A value is read as JSON where it is JSON,
            else as text; a part of the field with other characters than letters, digits, `_` and `-` stands in double quotes.
        cluster: TOML file with the section `cluster`, in place of the preset's.
        presets: Directory of the presets that `extends` may name.
        above: Settings of other files that extend the preset in turn, the last of one field counts, each with its file.

    Raises:
        ConfigError: A file cannot be read or is not TOML, or settings are unknown or impossible. The message has a line for each: the
            field, the value and what is allowed, and the file where it is not `preset`.
    """
    try:
        check_name(preset.stem)
    except ValueError as error:
        raise ConfigError(f"preset {str(preset)!r}: {error}; rename the file") from error
    own = [(file, locate(settings, file.parent)) for file, settings in reversed(above)]
    chain = [*own, *_read_chain(preset, presets)]
    inherits = len(chain) > 1
    tree = reduce(merge, (settings for _, settings in reversed(chain))) | {"preset": preset.stem}
    if cluster is not None:
        tree["cluster"] = read_toml("cluster", cluster)
        chain.insert(0, (cluster, {"cluster": tree["cluster"]}))
    problems = []
    given: dict[str, Any] = {}
    for override in overrides:
        try:
            _apply(tree, override)
            _apply(given, override)
        except ConfigError as error:
            problems.append(str(error))
    try:
        config = validate(RunConfig, tree)
    except ConfigError as error:
        origins = [(preset, given), *chain] if inherits else []
        problems += [_with_origin(line, preset, origins) for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _read_chain(preset: Path, presets: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """Return the settings of a preset and of those that it builds on, the preset first; paths in them know their file.

    Raises:
        ConfigError: A file cannot be read or is not TOML, or extends what is not there or extends it.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    path, what = preset, "preset"
    while True:
        tree = locate(read_toml(what, path), path.parent)
        if any(path.resolve() == seen.resolve() for seen, _ in chain):
            names = " -> ".join(each.name for each in (*(seen for seen, _ in chain), path))
            raise ConfigError(f"{what} {str(path)!r}: a circle, {names}: leave out one of them")
        extends = tree.pop("extends", None)
        chain.append((path, tree))
        if extends is None:
            return chain
        what = f"preset {str(path)!r}: extends"
        path = named_preset(extends, f"preset {str(path)!r}: extends", path.parent, presets)


def named_preset(name: Any, what: str, directory: Path, presets: Path | None) -> Path:
    """Return the preset that a file names.

    Args:
        name: Name of a preset, or a TOML file.
        what: The setting that names it, for the message.
        directory: What the TOML file is relative to.
        presets: Directory of the presets that have names.

    Raises:
        ConfigError: It is no file's name, and there is no preset of the name.
    """
    known = sorted(each.stem for each in presets.glob("*.toml")) if presets is not None else []
    allowed = "name a TOML file, relative to this one" + (f", or one of {', '.join(known)}" if known else "")
    if isinstance(name, str) and name.endswith(".toml"):
        return directory / Path(name).expanduser()
    if not isinstance(name, str) or presets is None or name not in known:
        raise ConfigError(f"{what}={_show(name)}: unknown; {allowed}")
    return presets / f"{name}.toml"


def _with_origin(line: str, preset: Path, origins: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """Return a line of an error with the file that it is about, where that is not the preset; overrides count as in the preset."""
    file = origin(line, origins)
    return line if file is None or file == preset else f"{line} [in {file}]"


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
        tree = tomllib.loads(text)
        _require_few_levels(tree)
        return tree
    except ValueError as error:  # a TOMLDecodeError, or a number with too many digits
        raise ConfigError(f"{what} {str(path)!r}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{what} {str(path)!r}: not TOML: nested too deeply; settings have a few levels") from error


def _require_few_levels(tree: Any) -> None:
    """Refuse a tree that is nested more deeply than settings are; dotted names make one of any depth.

    Raises:
        RecursionError: It is.
    """
    level = [tree]
    for _ in range(_LEVELS):
        level = [each for table in level for each in (table.values() if isinstance(table, dict) else table)]
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
    raise RecursionError


def validate(section: type[S], tree: Mapping[str, Any]) -> S:
    """Validate a tree of settings.

    Raises:
        ConfigError: One line a faulty field: its path, what is wrong with it and the value given.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        items = error.errors(include_url=False)
        lines = [line for item in items if not _follows(item, items) for line in _explain(item, section)]
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
        node = node.setdefault(key_of(node, name), {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {shown}: {name!r} is a value, not a section")
    try:
        value = json.loads(match[2], object_pairs_hook=_once, parse_int=_integer)
    except json.JSONDecodeError:
        value = match[2]
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"override {shown}: the value cannot be: {what}") from error
    node[key_of(node, leaf)] = value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a table has a key twice; leave one")
    return table


def _integer(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError(f"a number of {len(digits)} digits is too long for any setting")
    return int(digits)


def _follows(item: Any, items: Sequence[Any]) -> bool:
    """Say whether a list is too short only because of faulty items, which pydantic leaves out before it counts."""
    place = item["loc"]
    return item["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in items
    )


def _explain(item: Any, section: type[Section]) -> list[str]:
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
    location = [str(part) for part in item["loc"] if part not in ("[key]", ONE, SEVERAL)]
    secret = _SECRET.match(path) or CREDENTIAL.search(path)
    value = "" if secret else f" (value {_show(item['input'])})"
    if item["type"] == "extra_forbidden" and isinstance(item["input"], dict):
        known = [(leaf, called_here(leaf)) for leaf in _leaves(path, item["input"])]
        if any(name is not None for _, name in known):  # a table of another project
            return [f"{leaf}: unknown setting; here: {name}" for leaf, name in known if name is not None]
    if item["type"] == "extra_forbidden":
        return [f"{path}: unknown setting{value}; {_instead(path, location, section)}"]
    if item["input"] is False and item["type"] in _NOT_A_TABLE:
        return [
            f"{path}: false removes a table that the preset inherits, and it inherits none of this name; leave it out"
        ]
    if item["type"] == "missing":
        return [f"{path}: missing; this setting has no default"]
    if item["type"] in _NOT_A_TABLE:
        return [f"{path}: Input should be a table{value}"]
    if item["type"] == "tuple_type":
        return [f"{path}: Input should be a list{value}"]
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return [f"{path}.kind: {_of_no_kind(item, kinds_at(section, location))}"]
    if item["type"] == "value_error" and isinstance(item["input"], Mapping | Section):
        given = item["input"] if isinstance(item["input"], Mapping) else type(item["input"]).model_fields
        fields = {*fields_at(section, location), *given} if location else set()
        return [_about(path, line, fields) for line in message.splitlines()]
    return [f"{path}: {message}{value}"]


def _about(path: str, line: str, fields: Collection[str]) -> str:
    """Return what a table says of itself with its path; of one of its fields, `steps=3 must ...`, with that of the field."""
    match = _OF_FIELD.match(line)
    return f"{path}.{line}" if match is not None and match[0] in fields else f"{path}: {line}"


def _of_no_kind(item: Any, kinds: Sequence[str]) -> str:
    """Say of which kinds a table may be that is of none of them."""
    allowed = f"one of {', '.join(map(repr, kinds))}"
    kind = item["input"].get("kind") if isinstance(item["input"], Mapping) else None
    if kind is None:
        return f"missing; {allowed}"
    close = difflib.get_close_matches(str(kind), kinds, n=1)
    return f"{allowed} (value {_show(kind)})" + (f"; did you mean {close[0]!r}?" if close else "")


def _instead(path: str, location: Sequence[str], section: type[Section]) -> str:
    """Return what somebody may have meant by a setting that there is not."""
    if path == "extends":
        return "only a file has it, at its top"
    name = called_here(path)
    if name is not None:
        return f"here: {name}"
    *parents, last = location
    around = path.removesuffix(_part(last)).removesuffix(".")
    close = [
        f"{around}.{field}" if around else field
        for field in difflib.get_close_matches(last, fields_at(section, parents), n=1)
    ] or elsewhere(section, last)
    return (
        f"did you mean {close[0]}?"
        if len(close) == 1
        else f"`ngrpo config{f' {around}' if around else ''}` lists what there is"
    )


def _leaves(path: str, table: Mapping[str, Any], levels: int = 4) -> Iterator[str]:
    """Yield the paths of the values in a table, as far down as settings of other projects are."""
    for name, value in table.items():
        below = f"{path}.{_part(name)}"
        yield from _leaves(below, value, levels - 1) if isinstance(value, dict) and levels else [below]


def _part(part: str | int) -> str:
    """Return a part of a path, quoted if it is neither a field nor a name."""
    text = str(part)
    return text if text.isprintable() and 0 < len(text) < 100 else _show(text)


def _show(value: Any) -> str:
    """Return a value for a message: not all of it, and without credentials."""
    return redacted(_short.repr(value))
