"""Every setting with its type, its default and its meaning, from the schema of the configuration."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ngrpo.section import Section

NAME = "NAME"
"""Stands in paths for a name that users choose, like that of a benchmark."""

_MEANINGS = {"kind": "Which table this is."}
"""Of settings without a docstring."""

EXTENDS = (
    "A preset to build on: one of ours by name, or a TOML file, relative to this one. Tables are merged, values replace what was "
    "inherited, a table of another `kind` replaces the whole table, and `NAME = false` removes an inherited table."
)


@dataclass(frozen=True)
class Setting:
    """A setting.

    Attributes:
        name: Its name in its table.
        type: What it may be, in words.
        default: As it is written in TOML or JSON; `none` for nothing, `required` where there is no default.
        meaning: Its docstring.
    """

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table of settings.

    Attributes:
        paths: Where it may stand; the whole configuration is at the empty path.
        kind: The `kind` that it has there, if there are several.
        meaning: Docstring of the section.
        settings: Its settings in the order of the section.
    """

    paths: list[str]
    kind: str | None
    meaning: str
    settings: list[Setting] = field(default_factory=list)


@cache
def tables(section: type[Section]) -> list[Table]:
    """Return the tables of a configuration, each once, in the order in which they are found."""
    schema = _schema(section)
    found: dict[str, Table] = {}
    _find(schema, "", None, schema.get("$defs", {}), found, section.__name__)
    return list(found.values())


def fields_at(section: type[Section], path: Sequence[str]) -> list[str]:
    """Return the names of the settings of the table at a path; a `kind` may be part of it, as pydantic's errors have it."""
    return list(dict.fromkeys(name for node in _at(section, path) for name in node.get("properties", {})))


def kinds_at(section: type[Section], path: Sequence[str]) -> list[str]:
    """Return the kinds that the table at a path may be of."""
    kinds = (node.get("properties", {}).get("kind", {}).get("const") for node in _at(section, path))
    return [kind for kind in dict.fromkeys(kinds) if kind is not None]


def _at(section: type[Section], path: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the schemas of the table at a path."""
    schema = _schema(section)
    nodes: list[Mapping[str, Any]] = [schema]
    for part in path:
        nodes = [below for node in nodes for below in _below(node, part, schema.get("$defs", {}))]
    return nodes


def elsewhere(section: type[Section], name: str) -> list[str]:
    """Return the paths of every setting of a name."""
    return [
        f"{path}.{name}" if path else name
        for table in tables(section)
        if any(setting.name == name for setting in table.settings)
        for path in table.paths
    ]


@cache
def _schema(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema(schema_generator=_WithDocstrings)


class _WithDocstrings(GenerateJsonSchema):
    """Describes settings by their docstrings.

    With `use_attribute_docstrings` pydantic would read the source of every section whenever it is imported, for what few commands show.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        for name, meaning in _docstrings(schema["cls"]).items():
            described["properties"][name].setdefault("description", meaning)
        return described


def _docstrings(section: type[Section]) -> Mapping[str, str]:
    """Return the docstring of each field that has one."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__[: section.__mro__.index(Section)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for above, below in pairwise(definition.body):
            match above, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                    found[name] = inspect.cleandoc(text)
    return {name: text for name, text in found.items() if name in section.model_fields}


def _find(
    node: Mapping[str, Any], path: str, kind: str | None, defs: Mapping[str, Any], found: dict[str, Table], key: str
) -> None:
    if key in found:
        if path not in found[key].paths:
            found[key].paths.append(path)
    else:
        found[key] = Table([path], kind, _line(node.get("description", "")))
        required = node.get("required", ())
        for name, schema in node["properties"].items():
            below = next((table for table, suffix, *_ in _tables_in(schema, defs) if not suffix), {})
            default = "required" if name in required else _default(schema.get("default"), a_table=bool(below))
            meaning = schema.get("description") or below.get("description", "")
            found[key].settings.append(
                Setting(name, _type(schema, defs), default, _line(meaning or _MEANINGS.get(name, "")))
            )
    for name, schema in node["properties"].items():
        for below, suffix, kind_below, reference in _tables_in(schema, defs):
            _find(below, f"{path}.{name}{suffix}".lstrip("."), kind_below, defs, found, reference)


def _tables_in(
    schema: Mapping[str, Any], defs: Mapping[str, Any], suffix: str = ""
) -> Iterator[tuple[Mapping[str, Any], str, str | None, str]]:
    """Yield the tables that a field may hold: the schema, what its path has more than the field, its kind and its name."""
    if "$ref" in schema:
        reference = schema["$ref"].rpartition("/")[2]
        node = defs[reference]
        if "properties" in node:
            yield node, suffix, node["properties"].get("kind", {}).get("const"), reference
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _tables_in(option, defs, suffix)
    for values in _values(schema):
        yield from _tables_in(values, defs, f"{suffix}.{NAME}")
    if isinstance(schema.get("items"), dict):
        yield from _tables_in(schema["items"], defs, f"{suffix}[]")


def _below(node: Mapping[str, Any], part: str, defs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for schema in (*_options(node.get("properties", {}).get(part, {}), defs), *_values(node)):
        yield from _options(schema, defs)
    if node.get("properties", {}).get("kind", {}).get("const") == part:
        yield node


def _options(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        yield from _options(defs[schema["$ref"].rpartition("/")[2]], defs)
    elif "anyOf" in schema or "oneOf" in schema:
        for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            yield from _options(option, defs)
    elif schema:
        yield schema


def _values(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of the values of a table whose names users choose."""
    for values in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(values, dict) and values:
            yield values


def _default(value: Any, *, a_table: bool) -> str:
    if value is None:
        return "none"
    return "as below" if a_table else json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    return " ".join(text.split())


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Return in words what a field may be."""
    if "$ref" in schema:
        return _type(defs[schema["$ref"].rpartition("/")[2]], defs)
    options = [
        option for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) if option.get("type") != "null"
    ]
    if options:
        return " or ".join(dict.fromkeys(_type(option, defs) for option in options))
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "value")
    if kind == "object":
        values = next(_values(schema), None)
        inner = "" if values is None else _type(values, defs)
        return (
            "table"
            if values is None or inner == "table"
            else f"table of {inner}"
            if " or " not in inner
            else "table of values"
        )
    if kind == "array":
        inner = _type(schema["items"], defs) if schema.get("items") else "values"
        return f"list of {inner}"
    if kind == "string":
        return "day" if schema.get("format") == "date" else "text"
    words = {"integer": "integer", "number": "number", "boolean": "true | false"}.get(kind, kind)
    return f"{words} {_range(schema)}".strip()


def _range(schema: Mapping[str, Any]) -> str:
    bounds = {
        "from": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "to": schema.get("maximum"),
        "below": schema.get("exclusiveMaximum"),
    }
    return " ".join(f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None)


def _number(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) or abs(bound) < 10_000 else f"{bound:,}".replace(",", "_")


def editor_schema(section: type[Section]) -> dict[str, Any]:
    """Return the JSON schema of a preset for editors: of the whole configuration, but nothing need be there that can be inherited."""
    schema = deepcopy(_schema(section))
    for node in (schema, *schema["$defs"].values()):
        node["required"] = [name for name in node.pop("required", ()) if name == "kind"]
        for name, held in node.get("properties", {}).items():
            if next(_tables_in(held, schema["$defs"]), None) is not None:
                node["properties"][name] = _removable(held)
    schema["properties"].pop("preset")
    schema["properties"]["extends"] = {"type": "string", "description": EXTENDS}
    return schema | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Preset of ngrpo"}


def _removable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table, or of a table of tables, that may be `false`: it removes what is inherited."""
    if isinstance(schema.get("additionalProperties"), dict):
        return schema | {"additionalProperties": _removable(schema["additionalProperties"])}
    return {"anyOf": [schema, {"const": False}]}
