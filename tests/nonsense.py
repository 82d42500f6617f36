"""Settings that make no sense, for every field of the configuration: made from its schema, so that a new field is tried too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ngrpo.config import RunConfig, load_config

PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
DIGEST = "0123456789abcdef" * 4

# Together they have every section and every kind of source, and a value in everything that is optional.
BASES = {
    "tiny": [
        'resources.prepare_data={"gpus": 0}',
        'training.trl={"adam_epsilon": 1e-7}',
        'warm_start.trl={"adam_epsilon": 1e-7}',
        "training.epsilon_high=0.28",
        "training.delta=2.0",
        'evaluation.mixing={"strategy": "token"}',
        'evaluation.string_match=["arithmetic"]',
        'training.rewards={"letter": {}, "mine": {"function": "math:sqrt"}}',
        'promotion.tolerated_regression={"arithmetic": 1.0}',
        'cluster.tolerations=[{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]',
        'cluster.gpu.tolerations=[{"key": "gpu"}]',
        'cluster.environment={"A": "b"}',
        'cluster.secrets={"s": {"B": "key"}}',
        'cluster.labels={"team": "a"}',
        'cluster.node_selector={"disk": "fast"}',
        'cluster.gpu.node_selector={"gpu": "fast"}',
        'cluster.stage_timeout_hours={"prepare_data": 1}',
        "cluster.queue=q",
        "cluster.priority_class=p",
        "cluster.service_account=a",
        'cluster.image_pull_secrets=["r"]',
        'deployment={"name": "math", "service_account": "a", "token": "t"}',
        'signing={"private_key": "$SIGNING_KEY"}',
        'costs={"gpu_hour": 2.5}',
        'watch={"endpoint": {"url": "http://127.0.0.1:8000/v1"}}',
        'notifications={"team": {"url_from": "TEAM_WEBHOOK"}}',
        "evaluation.early_stop={}",
    ],
    "paper-7b": [
        "data.benchmarks.math500.limit=5",
        'data.benchmarks.math500.prompt_suffix="why?"',
        "data.benchmarks.math500.subset=all",
        "data.benchmarks.math500.solution_column=s",
    ],
    "smollm2": ['evaluation.endpoint={"url": "http://127.0.0.1:8000/v1", "model": "m"}'],
    "authors-release-7b": [
        'model.source={"kind": "registered", "name": "m", "version": 1, "id": "s3://b/m"}',
        f"model.source.digest={DIGEST}",
    ],
}

_HUGE = 10**23
_WRONG: dict[str, tuple[Any, ...]] = {
    "integer": (
        True,
        False,
        "3",
        1.5,
        2.0,
        1e308,
        _HUGE,
        2**63,
        -_HUGE,
        -1,
        math.nan,
        math.inf,
        "",
        "three",
        [],
        [1],
        {},
    ),
    "number": (
        True,
        False,
        "0.5",
        1e308,
        -1e308,
        _HUGE,
        -_HUGE,
        math.nan,
        math.inf,
        -math.inf,
        "",
        "much",
        [],
        [0.5],
        {},
    ),
    "boolean": (0, 1, 0.0, 1.0, "true", "yes", "on", "", [], [True], {}),
    "string": (3, 0, True, 1.5, _HUGE, "\0", "a\0b", "\ud800", "\x1b[31mred", "x" * 100_000, [], ["a"], {}, {"a": "b"}),
    "enum": (3, True, 1.5, "", "nonsense", "\0", "\ud800", [], {}),
    "array": (3, True, 1.5, "a", "", {}, {"a": 1}, [None], [[]], [{}], [True], [1.5], [_HUGE], [""], ["\0"], [-1]),
    "object": (3, True, 1.5, "a", "", [], [1], {"\0": 1}, {"a": None}, {"a": [[]]}, {"": ""}, {"../../a": {}}),
}
# Texts that may be empty; everything else must say something.
_MAY_BE_EMPTY = {
    "prompt_suffix",
    "system_prompt",
    "generation_prompt",
    "value",
    "environment",
    "labels",
    "node_selector",
    "options",
    "trl",
}
_MAY_BE_NEGATIVE = {"min_gain", "options", "trl", "weight"}


def base(name: str) -> dict[str, Any]:
    """Return a valid tree of settings."""
    return load_config(PRESETS / f"{name}.toml", BASES[name]).model_dump(mode="json")


Seen = set[tuple[type[BaseModel], str]]
"""Fields of sections that were tried."""


def wrong_settings(name: str, seen: Seen | None = None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield settings that must be refused: where in the tree of a base, and the value there; of fields that were seen, none."""
    config = load_config(PRESETS / f"{name}.toml", BASES[name])
    yield from _of_model(config, RunConfig, (), seen)


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy of a tree with another value at a place."""
    changed = json.loads(json.dumps(tree))
    node = changed
    for part in path[:-1]:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[path[-1]] = value
    return changed


def _of_model(
    model: BaseModel, kind: type[BaseModel], path: tuple[str, ...], seen: Seen | None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    schema = kind.model_json_schema()
    if _is_new(seen, kind, ""):
        yield (*path, "no_such_setting"), 1
    for name, field in schema["properties"].items():
        if name == "kind":
            continue
        value, here = getattr(model, name), (*path, name)
        required = name in schema.get("required", ())
        if _is_new(seen, kind, name):
            yield from ((here, wrong) for wrong in _wrong(name, field, schema.get("$defs", {}), required))
        yield from _below(value, here, field, schema.get("$defs", {}), seen)


def _is_new(seen: Seen | None, kind: type[BaseModel], name: str) -> bool:
    if seen is None:
        return True
    new = (kind, name) not in seen
    seen.add((kind, name))
    return new


def _below(
    value: Any, path: tuple[str, ...], field: dict[str, Any], defs: dict[str, Any], seen: Seen | None
) -> Iterator[Any]:
    """Yield wrong settings inside a value: of sections, and of the values of a table."""
    if isinstance(value, BaseModel):
        yield from _of_model(value, type(value), path, seen)
    elif isinstance(value, dict):
        table = _kinds(field, defs)["object"]
        inner = next(iter(table.get("patternProperties", {}).values()), None) or table["additionalProperties"]
        for key, item in value.items():
            if not isinstance(item, BaseModel):
                yield from (((*path, key), wrong) for wrong in _wrong(path[-1], inner, defs, True))
            yield from _below(item, (*path, key), inner, defs, seen)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            if isinstance(item, BaseModel):
                yield from _of_model(item, type(item), (*path, str(index)), seen)


def _kinds(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schemas that a field may have, by type."""
    if "$ref" in field:
        return _kinds(defs[field["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in field or "oneOf" in field:
        return {
            kind: schema
            for option in field.get("anyOf", field.get("oneOf"))
            for kind, schema in _kinds(option, defs).items()
        }
    if "enum" in field or "const" in field:
        return {"enum": field}
    return {field["type"]: field}


def _wrong(name: str, field: dict[str, Any], defs: dict[str, Any], required: bool) -> Iterator[Any]:
    kinds = _kinds(field, defs)
    for kind in kinds:
        if kind == "null":
            continue
        for value in _WRONG[kind]:
            if _fits(value, name, kinds):
                continue
            yield value
        if kind == "string" and name not in _MAY_BE_EMPTY:
            yield ""
    if "null" not in kinds:
        yield None


def _fits(value: Any, name: str, kinds: dict[str, dict[str, Any]]) -> bool:
    """Say whether a value is right after all, for one of the other types of a field or because there are exceptions."""
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int) and abs(value) < 1000:
        return ("number" in kinds or "integer" in kinds) and (value >= 0 or name in _MAY_BE_NEGATIVE)
    if isinstance(value, float) and abs(value) < 1000:
        return "number" in kinds
    if isinstance(value, str):
        return (
            "string" in kinds and value.isprintable() and len(value) < 1000 and (value != "" or name in _MAY_BE_EMPTY)
        )
    if value == []:
        return "array" in kinds
    if value == {}:
        return "object" in kinds
    return False
