"""The plan of a run: for each node its key, whether the store has its result, and why it has to run if not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ngrpo.config import RunConfig, select
from ngrpo.config.reading import override
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import DECLARED, Stage
from ngrpo.stages.keys import code_version, source_files, stage_key
from ngrpo.stages.libraries import Versions, installed, selected
from ngrpo_kfp.pipelines.planning.content import Content, read_contents, stage_settings
from ngrpo_kfp.pipelines.planning.nodes import History, Plan, PlannedStage, node_name
from ngrpo_kfp.pipelines.planning.reasons import explain, other_graders
from ngrpo_kfp.pipelines.post_training import StageTracer, post_training

if TYPE_CHECKING:
    from ngrpo.storage.artifacts import ArtifactStore


def make_plan(
    config: RunConfig,
    *,
    run: str,
    store: ArtifactStore | None,
    rerun_tokens: Mapping[str, str],
    history: History,
    versions: Versions = installed,
    stages: Mapping[str, Stage] = DECLARED,
    pipeline: Callable[[StageTracer], None] = post_training,
    contents: Mapping[str, Content] | None = None,
    read: Callable[[RunConfig], Mapping[str, Content]] = read_contents,
) -> Plan:
    """Plan a run.

    Args:
        config: Configuration of the run.
        run: Name of the run; part of the key of the stages that are never cached.
        store: Where results are looked up and verified; none to plan without a look-up.
        rerun_tokens: Token by base key, for results that a rerun was requested for.
        history: The run to compare with when saying why a node has to run.
        versions: Returns the versions of libraries where the stages run.
        stages: The stages by name.
        pipeline: The pipeline to trace.
        contents: The copies that the run reads (`read_contents`); read by default.
        read: Returns the copies that a node with a configuration of its own reads (`reader` reads each once).

    Raises:
        ConfigError: A node has an invalid name or settings, or a library that a stage declares is missing.
        DataError: A copy that the run reads is missing.
        StoreError: The store cannot be reached or read: a failed read is no reason to run a stage.
    """
    planned: dict[str, PlannedStage] = {}
    first_with: dict[str, PlannedStage] = {}
    of_run = read(config) if contents is None else contents
    whole = config

    @cache
    def versions_of(stage_name: str, names: tuple[str, ...]) -> Mapping[str, str]:
        """Cached, because looking up a version takes milliseconds and an experiment has hundreds of nodes."""
        return versions(stage_name, names)

    def trace(
        stage_name: str,
        /,
        *labels: str,
        settings: Mapping[str, Any] | None = None,
        config: RunConfig | None = None,
        **inputs: PlannedStage,
    ) -> PlannedStage | None:
        name, stage = node_name(stage_name, labels, planned), stages[stage_name]
        own = whole if config is None else config
        if settings is not None:
            own = _own_config(own, name, settings, stages)
        if stage.wanted is not None and not stage.wanted(own):
            return None
        chosen = stage_settings(select(own, stage.config), of_run if own is whole else read(own))
        content = {setting: each.digest for setting, each in chosen.content.items()}
        code = code_version(stage.module)
        input_keys = {input_name: source.key for input_name, source in inputs.items()}
        libraries = versions_of(stage_name, selected(stage.libraries, chosen.keyed))
        parts = partial(stage_key, stage_name, chosen.keyed, code, input_keys, libraries=libraries, content=content)
        base_key = parts()
        token = rerun_tokens.get(base_key) if stage.cacheable else run
        key = base_key if token is None else parts(token)
        first = first_with.get(key)
        if first is not None:
            planned[name] = _same_work(first, name, inputs)
            return planned[name]
        found = store.find(stage_name, key) if store is not None and stage.cacheable else None
        problems = store.verify(found) if store is not None and found is not None else []
        sound = found is not None and not problems
        new = PlannedStage(
            name=name,
            stage=stage_name,
            key=key,
            base_key=base_key,
            settings=chosen,
            code_version=code,
            sources=source_files(stage.module),
            libraries=libraries,
            inputs=inputs,
            reference=found if sound else None,
            damaged=None if sound else found,
            reasons=(),
        )
        if not stage.cacheable:
            reasons = ["never cached: it acts on the current state of the model registry", *other_graders(new, history)]
        elif store is None:
            reasons = ["store not consulted"]
        elif problems:
            reasons = [f"artifact damaged: {problem}" for problem in problems]
        else:
            reasons = [] if sound else explain(new, history)
        planned[name] = first_with[key] = replace(new, reasons=tuple(reasons))
        return planned[name]

    pipeline(trace)
    return Plan(planned)


def read_code(config: RunConfig) -> None:
    """Do the part of `make_plan` that needs no store and stays in memory, a third of its time, for example while the store starts.

    It builds the validators of the stages' settings, and reads the source code that the stages of a run reach.
    """
    for stage in DECLARED.values():
        if stage.wanted is None or stage.wanted(config):
            select(config, stage.config)
            code_version(stage.module)


def _own_config(config: RunConfig, node: str, settings: Mapping[str, Any], stages: Mapping[str, Stage]) -> RunConfig:
    """Return the configuration of a node with settings of its own.

    Raises:
        ConfigError: They are unknown or impossible, or no stage reads them, so that they belong to the whole run.
    """
    read = {field for stage in stages.values() if stage.wanted is None for field in stage.config.model_fields}
    try:
        for path in settings:
            if path.partition(".")[0] not in read:
                raise ConfigError(f"{path}: no stage reads it, so it belongs to the whole run: set it there")
        return override(config, [f"{path}={json.dumps(value)}" for path, value in settings.items()])
    except ConfigError as error:
        raise ConfigError("\n".join(f"node {node}: {line}" for line in str(error).splitlines())) from error


def _same_work(first: PlannedStage, name: str, inputs: Mapping[str, PlannedStage]) -> PlannedStage:
    """Return a node that takes the result of an earlier equal one: two tasks must not write the same result at the same time."""
    reasons = () if first.cached else (f"the same work as {first.name}: takes its result",)
    return replace(first, name=name, inputs=inputs, reasons=reasons, same_as=first)


def plan_record(plan: Plan) -> dict[str, Any]:
    """Return the record that later plans are compared with (`History.stages`)."""
    return {
        node.name: {
            "cached": node.cached,
            "key": node.key,
            "base_key": node.base_key,
            "config": json.loads(node.settings.keyed),
            "content": {setting: content.record() for setting, content in node.settings.content.items()},
            "sources": {path: sha256[:12] for path, sha256 in node.sources.items()},
            "libraries": dict(node.libraries),
            "inputs": {name: source.key for name, source in node.inputs.items()},
        }
        for node in plan
    }


def plan_for_programs(plan: Plan) -> list[dict[str, Any]]:
    """Return a plan as `ngrpo plan --json` prints it: the nodes in order, and why each has to run."""
    return [
        {
            "node": node.name,
            "stage": node.stage,
            "key": node.key,
            "cached": node.cached,
            "same_as": None if node.same_as is None else node.same_as.name,
            "reasons": list(node.reasons),
            "inputs": {name: source.name for name, source in node.inputs.items()},
        }
        for node in plan
    ]
