"""The plan of a run: for each stage its key, whether the store has its result, and why it has to run if not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ngrpo.config import RunConfig, select
from ngrpo.evaluation.protocol import is_grader_source
from ngrpo.stages.keys import code_version, config_json, source_files, stage_key
from ngrpo.stages.registry import STAGES, Stage
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.post_training import StageTracer, post_training

_LONGEST_VALUE = 40
"""Characters of a changed setting that are shown, digests and addresses among them."""
_MOST_CHANGES = 3


@dataclass(frozen=True)
class PlannedStage:
    """What is known of a stage before anything runs."""

    name: str
    key: str
    """Key of its result."""
    base_key: str
    """The key it would have without a rerun token."""
    config: str
    """Its settings as canonical JSON."""
    code_version: str
    sources: Mapping[str, str]
    """Hash of each source file behind `code_version`."""
    inputs: Mapping[str, PlannedStage]
    """The stages whose artifacts it reads, by the input's name."""
    reference: Reference | None
    """Its result, if the store has a sound one."""
    damaged: Reference | None
    """Its result, if the store has one that does not match its manifest."""
    reasons: tuple[str, ...]
    """Why it has to run; empty if it does not."""

    @property
    def cached(self) -> bool:
        """Whether the result in the store stands for a run."""
        return self.reference is not None


@dataclass(frozen=True)
class Plan:
    """All stages in order."""

    stages: Mapping[str, PlannedStage]

    def __iter__(self) -> Iterator[PlannedStage]:
        """Iterate over the stages in order."""
        return iter(self.stages.values())

    def __getitem__(self, name: str) -> PlannedStage:
        """Return a stage by name."""
        return self.stages[name]

    @property
    def to_run(self) -> list[PlannedStage]:
        """The stages that have to run, in order."""
        return [stage for stage in self if not stage.cached]


@dataclass(frozen=True)
class History:
    """What an earlier run recorded; an empty history explains a first run."""

    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `plan_record` said."""
    finished: frozenset[str] = frozenset()
    """Stages that had a result when the run ended."""


def make_plan(
    config: RunConfig,
    *,
    run: str,
    store: ArtifactStore | None,
    rerun_tokens: Mapping[str, str],
    history: History,
    stages: Mapping[str, Stage] = STAGES,
    pipeline: Callable[[StageTracer], None] = post_training,
) -> Plan:
    """Plan a run.

    Args:
        config: Configuration of the run.
        run: Name of the run; part of the key of the stages that are never cached.
        store: Where results are looked up and verified; none to plan without looking.
        rerun_tokens: Token by base key, for the results that were asked for again.
        history: The run to compare with when saying why a stage has to run.
        stages: The stages by name.
        pipeline: The pipeline to trace.

    Raises:
        StoreError: The store cannot be reached, or what it holds is not known: a fault while reading is no reason to run a stage.
    """
    planned: dict[str, PlannedStage] = {}

    def trace(name: str, /, **inputs: PlannedStage) -> PlannedStage:
        stage = stages[name]
        settings = config_json(select(config, stage.config))
        code = code_version(stage.module)
        input_keys = {input_name: source.key for input_name, source in inputs.items()}
        base_key = stage_key(name, settings, code, input_keys)
        token = rerun_tokens.get(base_key) if stage.cacheable else run
        key = base_key if token is None else stage_key(name, settings, code, input_keys, token)
        found = store.find(name, key) if store is not None and stage.cacheable else None
        problems = store.verify(found) if store is not None and found is not None else []
        sound = found is not None and not problems
        new = PlannedStage(
            name=name,
            key=key,
            base_key=base_key,
            config=settings,
            code_version=code,
            sources=source_files(stage.module),
            inputs=inputs,
            reference=found if sound else None,
            damaged=None if sound else found,
            reasons=(),
        )
        if not stage.cacheable:
            reasons = ["never cached: it acts on what the model registry holds now", *_other_graders(new, history)]
        elif store is None:
            reasons = ["store not consulted"]
        elif problems:
            reasons = [f"artifact damaged: {problem}" for problem in problems]
        else:
            reasons = [] if sound else _explain(new, history)
        planned[name] = replace(new, reasons=tuple(reasons))
        return planned[name]

    pipeline(trace)
    return Plan(planned)


def plan_record(plan: Plan) -> dict[str, Any]:
    """Return what a later plan compares itself with (`History.stages`)."""
    return {
        stage.name: {
            "cached": stage.cached,
            "key": stage.key,
            "base_key": stage.base_key,
            "config": json.loads(stage.config),
            "sources": {path: sha256[:12] for path, sha256 in stage.sources.items()},
            "inputs": {name: source.key for name, source in stage.inputs.items()},
        }
        for stage in plan
    }


def _explain(stage: PlannedStage, history: History) -> list[str]:
    """Say what is different from the run that the history is of."""
    before = history.stages.get(stage.name)
    if before is None:
        return ["no result yet"]
    if before["key"] == stage.key:
        return ["its artifact is gone from the store" if stage.name in history.finished else "did not finish last time"]
    reasons = []
    settings = _changes(before["config"], json.loads(stage.config))
    if settings:
        reasons.append(f"configuration changed: {_shorten(settings)}")
    sources = {path: sha256[:12] for path, sha256 in stage.sources.items()}
    files = sorted({path for path, _ in before["sources"].items() ^ sources.items()})
    if files:
        reasons.append(f"code changed: {_shorten([f'ngrpo/{file}' for file in files])}")
    reasons += [
        f"input {name} changed" for name, source in stage.inputs.items() if before["inputs"].get(name) != source.key
    ]
    return reasons or ["rerun asked for"]


def _other_graders(stage: PlannedStage, history: History) -> list[str]:
    """Say that graders changed since the run that the history is of, where a stage grades what was graded before."""
    before = history.stages.get(stage.name, {}).get("sources", {})
    now = {path: sha256[:12] for path, sha256 in stage.sources.items()}
    if not before or not any(is_grader_source(path) for path, _ in before.items() ^ now.items()):
        return []
    return ["graders changed: stored samples of the champion are graded again, none is generated"]


def _shorten(items: list[str]) -> str:
    rest = len(items) - _MOST_CHANGES
    return ", ".join(items[:_MOST_CHANGES]) + (f" and {rest} more" if rest > 0 else "")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{path} {_text(old, path)} → {_text(new, path)}"
        for path in dict.fromkeys([*new, *old])
        if (path in old, old.get(path)) != (path in new, new.get(path))
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(leaves: Mapping[str, Any], path: str) -> str:
    text = json.dumps(leaves[path], ensure_ascii=False) if path in leaves else "(none)"
    half = _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}…{text[-half:]}"
