"""Measure a model under the protocol of a preset: its benchmarks, prompts, sampling and graders, from the stages of the pipeline."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import EndpointConfig, RunConfig
from ngrpo.config.reading import override
from ngrpo.contracts.evaluation import EVALUATION, Evaluation, Result, read_evaluation
from ngrpo.evaluation.endpoint_client import EndpointClient
from ngrpo.evaluation.endpoint_names import served_model
from ngrpo.report.phases import PREPARING, messages, phase
from ngrpo.report.wording import ESTIMATORS
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.local.parent_run import pipeline_run
from ngrpo_kfp.pipelines.local.services import Services, services
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.content import read_contents
from ngrpo_kfp.pipelines.planning.measured_model import model_source
from ngrpo_kfp.pipelines.planning.needs import require_gpus
from ngrpo_kfp.pipelines.planning.nodes import Plan
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record
from ngrpo_kfp.pipelines.planning.summary import plan_table
from ngrpo_kfp.pipelines.post_training import StageTracer

_MODEL = "trained"
"""Name of the model in the evaluation."""
REPORT = "report.md"
_NAMES_SECONDS = 30.0
"""Limit of the request for the names that an endpoint serves."""


def measure(config: RunConfig, model: str, workspace: Workspace, console: Console, *, as_json: bool = False) -> Path:
    """Measure a model, show the results, and return the directory that holds `evaluation.json` and a report.

    The data is byte for byte that of a run of the preset, whose tables are reused. Everything is stored under keys of content, so the
    same model is measured once.

    With `evaluation.endpoint` the served model is measured, every time anew, because an endpoint may answer differently tomorrow.

    Args:
        config: Configuration of a run of the preset.
        model: The model; see `model_source`.
        workspace: Where everything is stored.
        console: Where progress and results are shown.
        as_json: Print the results as JSON, and progress to the standard error.

    Raises:
        NGRPOError: A service or a stage failed in a way that the user can fix, or the endpoint serves another model.
        Interrupted: The measurement was told to stop.
    """
    config = _without_gpus(config) if config.evaluation.endpoint is not None else config
    said = messages(console, as_json=as_json)
    with workspace.lock(), phase(said, PREPARING) as prepared, services(workspace) as around:
        source = model_source(model, config)
        if config.evaluation.endpoint is not None:
            _require_named(config.evaluation.endpoint, source.get("digest"))
        store = around.artifact_store(workspace)
        name = workspace.run_name(config.preset)
        planned = partial(
            make_plan,
            config,
            run=name,
            store=store,
            history=workspace.history(config.preset),
            pipeline=_measurement(source, config),
            contents=read_contents(config, workspace.digests),
        )
        tokens = workspace.rerun_tokens()
        plan = planned(rerun_tokens=tokens)
        if config.evaluation.endpoint is not None:
            plan = planned(rerun_tokens=tokens | {plan["benchmark_evaluation"].base_key: name})
        require_gpus(config, plan)
        directory = workspace.evaluations / name
        with written(directory):
            directory.mkdir(mode=0o700, parents=True)
        write_state(directory / "config.json", config.model_dump(mode="json"))
        write_state(directory / "plan.json", plan_record(plan))
        if plan.to_run:
            importlib.import_module("ngrpo_kfp.pipelines.local.runner")  # takes seconds
        prepared.end()
        if not as_json:
            console.print(plan_table(plan, config))
        reference = plan["benchmark_evaluation"].reference or _run(plan, config, around, directory, said)
        evaluation = _copied(store, reference, directory)
    report = directory / REPORT
    report.write_text(_report(evaluation, config, model, reference), encoding="utf-8")
    if as_json:
        console.print_json(data=_for_programs(evaluation, config, model, reference, directory), indent=1)
        return directory
    console.print(escape(_title(config, model)), soft_wrap=True)
    console.print(_results(evaluation, config))
    console.print(f"report: {report}", soft_wrap=True)
    return directory


def _without_gpus(config: RunConfig) -> RunConfig:
    """Return the configuration of a measurement that uses the endpoint's GPUs."""
    asked = [stage for stage in ("sft_warm_start", "benchmark_evaluation") if config.needs(stage).gpus]
    return override(config, [f"resources.{stage}.{field}=0" for stage in asked for field in ("gpus", "gpu_memory_gib")])


def _measurement(source: Mapping[str, Any], config: RunConfig) -> Callable[[StageTracer], None]:
    """Return the pipeline that measures a model: the data of the preset, and a warm start without steps, which passes the model on."""
    own = {"model.source": dict(source), "warm_start.steps": 0}
    if config.evaluation.early_stop is not None:
        own["evaluation.early_stop"] = None  # there is no decision to settle
    if config.evaluation.endpoint is not None:
        own["evaluation.engine"] = "transformers"  # no engine is started, so vLLM need not be installed here

    def pipeline(stage: StageTracer) -> None:
        dataset = stage("prepare_data")
        model = stage("sft_warm_start", settings=own, dataset=dataset)
        stage("benchmark_evaluation", settings=own, dataset=dataset, warm_start=model, trained=model)

    return pipeline


def _run(plan: Plan, config: RunConfig, around: Services, directory: Path, console: Console) -> Reference:
    from ngrpo_kfp.pipelines.local.runner import run_stages

    with pipeline_run(config, around, directory):
        record = run_stages(plan, directory, console)["benchmark_evaluation"]
    return Reference(uri=record["artifact"], key=record["key"], digest=record["digest"])


def _copied(store: ArtifactStore, reference: Reference, directory: Path) -> Evaluation:
    fetched = store.fetch(reference, only=EVALUATION) / EVALUATION
    with written(directory):
        shutil.copyfile(fetched, directory / EVALUATION)
    return read_evaluation(fetched, "measure the model again")


def _require_named(endpoint: EndpointConfig, digest: str | None) -> None:
    """Refuse an endpoint whose names already say that it serves another model, before a measurement starts. One request, of a few bytes.

    Raises:
        OtherModelError: The files that it serves have another digest.
        ConfigError: It serves no model of the requested name, or refuses the token.
        EngineError: It cannot be reached, or has no such API.
    """
    client = EndpointClient(endpoint, connections=1, seconds=_NAMES_SECONDS)
    with closing(client):
        served_model(endpoint, client.models(), digest)


@dataclass(frozen=True)
class _Value:
    """A result: fractions, not percent."""

    benchmark: str
    measure: str
    """`mean@N`, `maj@N`, `pass@K` or `best@K`."""
    value: float
    interval: list[float] | None


def _values(evaluation: Evaluation) -> Iterator[_Value]:
    """Yield the results of each benchmark."""
    for name, result in evaluation["models"][_MODEL].items():
        yield _Value(name, f"mean@{result['n_samples']}", result["mean"], result["mean_ci"])
        if "maj" in result and "maj_ci" in result:
            yield _Value(name, f"maj@{result['n_samples']}", result["maj"], result["maj_ci"])
        for estimator, values, intervals in (
            ("pass", result["pass_at_k"], result.get("pass_at_k_ci", {})),
            ("best", result.get("best_at_k", {}), result.get("best_at_k_ci", {})),
        ):
            for k, value in values.items():
                if k != "1":  # both are the mean then
                    yield _Value(name, f"{estimator}@{k}", value, intervals.get(k))


def _rows(evaluation: Evaluation, config: RunConfig) -> list[tuple[str, str, str, str]]:
    """Return title, measure, value in percent and interval of each result."""
    return [
        (
            config.title(found.benchmark),
            found.measure,
            _percent(found.value),
            "" if found.interval is None else _interval(found.interval),
        )
        for found in _values(evaluation)
    ]


def _for_programs(
    evaluation: Evaluation, config: RunConfig, model: str, reference: Reference, directory: Path
) -> dict[str, Any]:
    """Return a measurement as `ngrpo evaluate --json` prints it."""
    endpoint = config.evaluation.endpoint
    return {
        "model": model,
        "preset": config.preset,
        "endpoint": None if endpoint is None else endpoint.url,
        "weights": evaluation.get("weights", {}).get(_MODEL),
        "key": reference.key,
        "artifact": reference.uri,
        "directory": str(directory),
        "confidence": config.evaluation.confidence,
        "results": [asdict(found) for found in _values(evaluation)],
    }


def _title(config: RunConfig, model: str) -> str:
    endpoint = config.evaluation.endpoint
    where = "" if endpoint is None else f", served at {endpoint.url}"
    return f"{model} under the protocol of {config.preset}{where}"


def _results(evaluation: Evaluation, config: RunConfig) -> Table:
    table = Table()
    table.add_column("benchmark")
    table.add_column("")
    table.add_column("%", justify="right")
    table.add_column(f"{_level(config)} interval", justify="right")
    for row in _rows(evaluation, config):
        table.add_row(*map(escape, row))
    return table


def _report(evaluation: Evaluation, config: RunConfig, model: str, reference: Reference) -> str:
    """Return the results, with all facts needed to compare them, as Markdown."""
    lines = [
        f"# {_title(config, model)}",
        "",
        f"Weights: sha256 {evaluation.get('weights', {}).get(_MODEL)}. Evaluation: {reference.key}, {reference.uri}.",
        "",
        f"| benchmark | | % | {_level(config)} interval |",
        "|---|---|---|---|",
        *("| " + " | ".join(each.replace("|", r"\|") for each in row) + " |" for row in _rows(evaluation, config)),
        "",
        "| benchmark | problems | tokens a response | cut off, % | without an answer, % |",
        "|---|---|---|---|---|",
        *(_lengths(config.title(name), result) for name, result in evaluation["models"][_MODEL].items()),
        "",
        "Two measurements are comparable where their protocols in `evaluation.json` are equal: problems, revision, prompts, sampling and "
        "graders. A model with another chat template has other prompts.",
        "",
        ESTIMATORS,
        "",
    ]
    return "\n".join(lines)


def _lengths(title: str, result: Result) -> str:
    rates = (result.get("truncated_rate", 0.0), result.get("ungraded_rate", 0.0))
    return (
        f"| {title} | {result['n_problems']} | {result.get('mean_tokens', 0.0):.1f} | "
        + " | ".join(map(_percent, rates))
        + " |"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _interval(ends: list[float]) -> str:
    return f"[{_percent(ends[0])}, {_percent(ends[1])}]"


def _level(config: RunConfig) -> str:
    return f"{config.evaluation.confidence:.0%}"
