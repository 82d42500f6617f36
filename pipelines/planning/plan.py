"""The plan of a run: for each stage its key, whether the store has its result, and why it has to run if not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ngrpo.config import RunConfig, select
from ngrpo.stages.declarations import STAGES, Stage
from ngrpo.stages.keys import code_version, source_files, stage_key
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo_kfp.pipelines.planning.content import Content, read_contents, stage_settings
from ngrpo_kfp.pipelines.planning.nodes import History, Plan, PlannedStage
from ngrpo_kfp.pipelines.planning.reasons import explain, other_graders
from ngrpo_kfp.pipelines.post_training import StageTracer, post_training


def make_plan(
    config: RunConfig,
    *,
    run: str,
    store: ArtifactStore | None,
    rerun_tokens: Mapping[str, str],
    history: History,
    stages: Mapping[str, Stage] = STAGES,
    pipeline: Callable[[StageTracer], None] = post_training,
    contents: Mapping[str, Content] | None = None,
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
        contents: The copies that the run reads (`read_contents`); read by default.

    Raises:
        DataError: A copy that the run reads is not there.
        StoreError: The store cannot be reached, or what it holds is not known: a fault while reading is no reason to run a stage.
    """
    planned: dict[str, PlannedStage] = {}
    read = read_contents(config) if contents is None else contents

    def trace(name: str, /, **inputs: PlannedStage) -> PlannedStage:
        stage = stages[name]
        settings = stage_settings(select(config, stage.config), read)
        content = {setting: each.digest for setting, each in settings.content.items()}
        code = code_version(stage.module)
        input_keys = {input_name: source.key for input_name, source in inputs.items()}
        base_key = stage_key(name, settings.keyed, code, input_keys, content=content)
        token = rerun_tokens.get(base_key) if stage.cacheable else run
        key = base_key if token is None else stage_key(name, settings.keyed, code, input_keys, token, content=content)
        found = store.find(name, key) if store is not None and stage.cacheable else None
        problems = store.verify(found) if store is not None and found is not None else []
        sound = found is not None and not problems
        new = PlannedStage(
            name=name,
            key=key,
            base_key=base_key,
            config=settings.given,
            settings=settings,
            code_version=code,
            sources=source_files(stage.module),
            inputs=inputs,
            reference=found if sound else None,
            damaged=None if sound else found,
            reasons=(),
        )
        if not stage.cacheable:
            reasons = ["never cached: it acts on what the model registry holds now", *other_graders(new, history)]
        elif store is None:
            reasons = ["store not consulted"]
        elif problems:
            reasons = [f"artifact damaged: {problem}" for problem in problems]
        else:
            reasons = [] if sound else explain(new, history)
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
            "config": json.loads(stage.settings.keyed),
            "content": {setting: content.record() for setting, content in stage.settings.content.items()},
            "sources": {path: sha256[:12] for path, sha256 in stage.sources.items()},
            "inputs": {name: source.key for name, source in stage.inputs.items()},
        }
        for stage in plan
    }
