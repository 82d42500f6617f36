"""Why a stage has to run: the differences from an earlier run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ngrpo.config.code import holds_code, without_code
from ngrpo.evaluation.protocol import is_grader_source
from ngrpo_kfp.pipelines.planning.content import difference
from ngrpo_kfp.pipelines.planning.nodes import History, PlannedStage

_LONGEST_VALUE = 40
"""Most characters shown of a changed setting, such as a digest or an address."""
_MOST_CHANGES = 3


def explain(stage: PlannedStage, history: History) -> list[str]:
    """Return the differences from the run of the history."""
    before = history.stages.get(stage.name)
    if before is None:
        return ["no result yet"]
    if before["key"] == stage.key:
        return ["its artifact is gone from the store" if stage.name in history.finished else "did not finish last time"]
    reasons = []
    now = json.loads(stage.settings.keyed)
    settings = _changes(without_code(before["config"]), without_code(now))
    if settings:
        reasons.append(f"configuration changed: {_shorten(settings)}")
    reasons += _code_changes(dict(_code(before["config"])), dict(_code(now)))
    for setting, content in stage.settings.content.items():
        told = difference(before.get("content", {}).get(setting), content)
        reasons += [f"{setting}: {told}"] if told else []
    sources = {path: sha256[:12] for path, sha256 in stage.sources.items()}
    files = sorted({path for path, _ in before["sources"].items() ^ sources.items()})
    if files:
        reasons.append(f"code changed: {_shorten([f'ngrpo/{file}' for file in files])}")
    if "libraries" not in before:
        reasons.append("its key now covers the versions of libraries")
    elif changes := _changes(before["libraries"], stage.libraries, str):
        reasons.append(f"library {_shorten(changes)}")
    reasons += [
        f"input {name} changed" for name, source in stage.inputs.items() if before["inputs"].get(name) != source.key
    ]
    return reasons or ["rerun asked for"]


def other_graders(stage: PlannedStage, history: History) -> list[str]:
    """Say that graders changed since the run of the history, if a stage may grade stored samples again."""
    before = history.stages.get(stage.name, {}).get("sources", {})
    now = {path: sha256[:12] for path, sha256 in stage.sources.items()}
    if not before or not any(is_grader_source(path) for path, _ in before.items() ^ now.items()):
        return []
    return ["graders changed: stored samples of the champion are graded again, none is generated"]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shorten(items: list[str]) -> str:
    rest = len(items) - _MOST_CHANGES
    return ", ".join(items[:_MOST_CHANGES]) + (f" and {rest} more" if rest > 0 else "")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], write: Callable[[Any], str] = _json) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changes = []
    for path in dict.fromkeys([*new, *old]):
        if (path in old, old.get(path)) != (path in new, new.get(path)):
            texts = [_text(leaves, path, write) for leaves in (old, new)]
            # Long texts may look equal once they are shortened.
            changes.append(f"{path} {texts[0]} → {texts[1]}" if texts[0] != texts[1] else f"{path} (a long text)")
    return changes


def _code(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the texts of the user's files by relative path, of each setting that has some."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if holds_code(value):
                yield f"{prefix}{name}", value["code"]
            yield from _code(value, f"{prefix}{name}.")


def _code_changes(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Say which of the user's files differ, for settings in both runs."""
    reasons = []
    for setting in now.keys() & before.keys():
        old, new = before[setting], now[setting]
        changes = [
            f"{name} {'changed' if name in old and name in new else 'added' if name in new else 'removed'}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        reasons += [f"{setting}: {_shorten(changes)}"] if changes else []
    return sorted(reasons)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(leaves: Mapping[str, Any], path: str, write: Callable[[Any], str]) -> str:
    text = write(leaves[path]) if path in leaves else "(none)"
    half = _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}…{text[-half:]}"
