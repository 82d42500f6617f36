"""Stage `benchmark_evaluation`: measure base model, warm start and trained model on the same problems with the same seeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.contracts.evaluation import (
    EVALUATION,
    EarlyStop,
    Evaluation,
    Protocol,
    Result,
    read_evaluation,
    write_evaluation,
)
from ngrpo.contracts.layout import LAYOUT
from ngrpo.contracts.metrics import write_metrics
from ngrpo.data.model_directory import read_config, require_weights
from ngrpo.data.models import materialize
from ngrpo.errors import ConfigError, StoreError
from ngrpo.evaluation.benchmark import Benchmark, read_benchmarks
from ngrpo.evaluation.configured_sampler import start_sampler
from ngrpo.evaluation.gate import Measured
from ngrpo.evaluation.protocol import benchmark_protocol, revisions
from ngrpo.evaluation.results import benchmark_result, flat_metrics
from ngrpo.evaluation.rounds import Rounds
from ngrpo.evaluation.samples import KeptSamples, LocalSamples, Part, SampleStore, parts
from ngrpo.evaluation.sampling_processes import devices_of_processes, sampled_by_processes
from ngrpo.evaluation.sampling_worker import Task
from ngrpo.evaluation.stored_evaluation import MODEL, answers_of, statistics_of
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.cores import usable_cores
from ngrpo.grading.grader import Grader
from ngrpo.report.sampling_progress import SamplingProgress
from ngrpo.rollout.loading import load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.stages.keys import canonical_json, code_version, digest
from ngrpo.stages.libraries import GENERATING, installed, selected
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.user_code.loading import write_code


def run(config: BenchmarkEvaluationConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `samples/<model>/<benchmark>.parquet`, `evaluation.json`, `metrics.json` and the `code/` of the user's graders.

    The models are `base`, `warm_start` and `trained`; without a warm start the second is the first and stands for both.

    Samples are stored below `samples/` in the object store (`NGRPO_STORE`), under a key of everything that they depend on. So samples of a
    killed try on any machine, and of an evaluation with fewer samples, are not generated again, unless they are damaged.

    With `evaluation.early_stop` generating for the trained model ends as soon as the gate's verdict against its opponent is settled
    (`ngrpo.evaluation.rounds`); `evaluation.json` then says how many samples were planned and how many were saved.

    Where there are GPUs, each generates with a process of its own; they share one queue over all benchmarks of a model.

    With `evaluation.endpoint` a served model answers, and all three models must be that one. Its answers are stored for the tries of this
    stage only, because the endpoint may answer differently tomorrow.

    `evaluation.json` holds the gold answers too, so that other graders can grade the samples again, but nothing else of the problems.

    Args:
        config: Settings of the stage.
        inputs: `dataset`, `warm_start`, `trained`.
        output: Empty directory for the artifact.
        context: Holds the samples, in its store or in its work directory.

    Raises:
        DataError: A benchmark is damaged, empty or repeats ids, or a model or its tokenizer cannot be used.
        ConfigError: `evaluation.mixing` does not fit the model's vocabulary, or there are fewer GPUs than share a model.
        EngineError: The engine does not start, or one of several processes failed or was killed.
        StoreError: The object store cannot be reached, or samples cannot be stored.
    """
    benchmarks = read_benchmarks(inputs["dataset"] / "benchmarks", config.benchmark_gradings)
    data_revisions = revisions(inputs["dataset"])
    store = _sample_store(config, context)
    all_results: dict[str, dict[str, Result]] = {}
    all_protocols: dict[str, dict[str, Protocol]] = {}
    weights: dict[str, str] = {}
    metrics: dict[str, float] = {}
    early_stop: EarlyStop | None = None
    opponent = _opponent(config, context)
    models = _models(config, inputs, context.work)
    samples_of_model = sum(len(benchmark.ids) for benchmark in benchmarks) * config.evaluation.samples
    progress = SamplingProgress(len(models) * samples_of_model, context.progress)
    with Grader(workers=usable_cores()) as grader:
        for name, directory in models.items():
            weights[name] = model_digest(directory)
            config_of_model = read_config(directory, f"model directory {directory}")
            vocabulary = config_of_model.get_text_config().vocab_size
            tokenizer = load_tokenizer(directory, vocabulary, config.model.template_date)
            protocols = all_protocols[name] = {}
            results = all_results[name] = {}
            kept = []
            for benchmark in benchmarks:
                prompts = tokenizer.apply_chat_template(benchmark.prompts, add_generation_prompt=True, tokenize=False)
                protocol = benchmark_protocol(benchmark, prompts, config.evaluation, data_revisions.get(benchmark.name))
                key = _samples_key(config, weights[name], protocol["prompts"])
                protocols[benchmark.name] = protocol
                kept.append(KeptSamples(store, key, benchmark, config.evaluation.samples))
            task = Task(
                config=config.model_dump_json(), model=str(directory), benchmarks=str(inputs["dataset"] / "benchmarks")
            )
            missing = [len(samples.missing) for samples in kept]
            progress.skip(samples_of_model - sum(missing))
            count = [
                progress.of(f"{name} {benchmark.name}", len(benchmark.ids) * config.evaluation.samples, left)
                for benchmark, left in zip(benchmarks, missing, strict=True)
            ]
            rounds = None
            if config.gate is not None and config.evaluation.early_stop is not None and name == MODEL:
                rounds = Rounds(
                    config.gate,
                    config.evaluation.early_stop.error,
                    kept,
                    protocols,
                    opponent or Measured("the warm start", all_results["warm_start"], all_protocols["warm_start"]),
                    result=lambda samples: _result(config, samples, grader)[1],
                    seed=config.seed,
                    unit=_unit(config),
                    say=context.progress,
                )
            _generate(config, name, task, kept, context, count, rounds)
            early_stop = None if rounds is None else rounds.summary()
            if early_stop is not None:
                progress.skip(early_stop["saved"])
            for samples in kept:
                benchmark = samples.benchmark
                table, result = _result(config, samples, grader)
                if rounds is not None:
                    result = rounds.marked(samples, result)
                path = output / "samples" / name / f"{benchmark.name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, path)
                results[benchmark.name] = result
                metrics |= flat_metrics(result, f"{name}/{benchmark.name}")
                context.progress(_line(name, benchmark.name, result))
    evaluation: Evaluation = {
        "layout": LAYOUT,
        "models": all_results,
        "protocols": all_protocols,
        "weights": weights,
        "answers": answers_of(benchmarks),
        "statistics": statistics_of(config.evaluation, config.seed),
    }
    if early_stop is not None:
        evaluation["early_stop"] = early_stop
        metrics |= {f"early_stop/{field}_samples": float(early_stop[field]) for field in ("planned", "saved")}
        context.progress(f"early stop: {early_stop['saved']:,} of {early_stop['planned']:,} samples were saved")
    write_evaluation(output / EVALUATION, evaluation)
    for benchmark in benchmarks:
        write_code(benchmark.grading.compare.code, output / "code" / benchmark.name)
    if config.evaluation.mixing is not None and config.evaluation.mixing.reference is not None:
        write_code(config.evaluation.mixing.reference.code, output / "code" / "evaluation.mixing.strategy")
    write_metrics(output, metrics)


def _result(config: BenchmarkEvaluationConfig, samples: KeptSamples, grader: Grader) -> tuple[pa.Table, Result]:
    """Return the wanted samples of a benchmark with their verdicts, and its result."""
    by_string = samples.benchmark.name in config.evaluation.string_match
    table = graded(samples.table(), samples.benchmark, grader, by_string=by_string)
    settings = config.evaluation
    if samples.samples < settings.samples:  # it may have stopped early
        drawn = tuple(k for k in settings.pass_at if k <= samples.samples)
        settings = settings.model_copy(update={"samples": samples.samples, "pass_at": drawn})
    return table, benchmark_result(table, settings, config.seed)


def _opponent(config: BenchmarkEvaluationConfig, context: Context) -> Measured | None:
    """Return the opponent for an early verdict; none for the warm start.

    Raises:
        ConfigError: The opponent is unknown.
        StoreError: Its evaluation is gone or damaged, or the store cannot be reached.
    """
    early = config.evaluation.early_stop
    if early is None or early.opponent == "warm_start":
        return None
    setting = f"evaluation.early_stop.opponent={early.opponent!r}"
    if early.opponent == "champion" or context.store is None:
        raise ConfigError(f"{setting}: no champion was looked up for this stage; name the key of its evaluation")
    store = ArtifactStore(ObjectStore(context.store), context.work / "opponent")
    found = store.find("benchmark_evaluation", early.opponent)
    if found is None:
        raise StoreError(f"{setting}: there is no such evaluation in {context.store}; leave it out, or name another")
    evaluation = read_evaluation(
        store.fetch(found, only=EVALUATION) / EVALUATION, "run the pipeline that made it again"
    )
    return Measured.of(evaluation, MODEL, "the champion")


def _unit(config: BenchmarkEvaluationConfig) -> int:
    """Return how many requests must stay together.

    vLLM forms its batches itself. Those of the transformers engine must be the same, whichever process decodes them.
    """
    evaluation = config.evaluation
    continuous = evaluation.engine == "vllm" or evaluation.endpoint is not None
    return evaluation.samples if continuous else evaluation.batch_size


def _models(config: BenchmarkEvaluationConfig, inputs: Mapping[str, Path], work: Path) -> dict[str, Path]:
    """Return the directory of each model, in the order of the pipeline."""
    models = {name: inputs[name] / "model" for name in ("warm_start", "trained")}
    return (
        {"base": materialize(config.model.source, work / "base_model", config.model)} | models
        if config.warm_start.steps
        else models
    )


def _sample_store(config: BenchmarkEvaluationConfig, context: Context) -> SampleStore:
    if context.store is None or config.evaluation.endpoint is not None:
        return LocalSamples(context.work / "samples")
    return ObjectStore(f"{context.store.rstrip('/')}/samples")


def _samples_key(config: BenchmarkEvaluationConfig, weights: str, prompts: str) -> str:
    """Return the key of everything that a sample depends on besides benchmark, problem and sample id."""
    evaluation = config.evaluation
    mixing = (
        None if evaluation.mixing is None else [evaluation.mixing.model_dump(mode="json"), config.neighbors.candidates]
    )
    sampling: list[Any] = [
        evaluation.temperature,
        evaluation.top_p,
        evaluation.max_tokens,
        evaluation.engine,
        config.model.dtype,
    ]
    if evaluation.engine == "vllm" and evaluation.vllm.options:
        sampling.append(evaluation.vllm.options)  # quantization, for example
    if evaluation.endpoint is not None:
        sampling.append(evaluation.endpoint.model_dump(mode="json"))
    generator = code_version("ngrpo.rollout.configured_engine")
    libraries = installed("benchmark_evaluation", selected(GENERATING, canonical_json({"engine": evaluation.engine})))
    return digest(canonical_json([weights, prompts, config.seed, sampling, mixing, generator, libraries]))


def _line(model: str, benchmark: str, result: Result) -> str:
    low, high = result["mean_ci"]
    return (
        f"{model} {benchmark}: mean@{result['n_samples']} {result['mean']:.1%} [{low:.1%}, {high:.1%}], "
        + ", ".join(f"pass@{k} {value:.1%}" for k, value in result["pass_at_k"].items())
    )


def _generate(
    config: BenchmarkEvaluationConfig,
    name: str,
    task: Task,
    kept: Sequence[KeptSamples],
    context: Context,
    count: Sequence[Callable[[int], None]],
    rounds: Rounds | None,
) -> None:
    """Generate the missing samples, in rounds if the evaluation may stop early; the model is only loaded if some are missing.

    `count` receives the number of new samples of a benchmark.
    """
    evaluation = config.evaluation
    served = evaluation.endpoint is not None
    continuous = evaluation.engine == "vllm" or served
    if rounds is None:
        waiting = [part for place, samples in enumerate(kept) for part in parts(place, samples.missing, _unit(config))]
    else:
        waiting = rounds.parts()
    more: Callable[[], Sequence[Part]] = tuple if rounds is None else rounds.parts
    if not waiting:
        return
    require_weights(Path(task["model"]), f"model directory {task['model']}")  # once, and not by each process
    # While vLLM decodes a batch, another one waits, from which it takes requests as soon as responses end.
    ahead = evaluation.batch_size * (2 if continuous else 1)
    gpus_each = evaluation.vllm.tensor_parallel_size if continuous else 1
    devices = [None] if served else devices_of_processes(context.processes, gpus_each)
    if devices == [None]:
        tables = _sampled_here(config, task, [samples.benchmark for samples in kept], waiting, more, ahead)
    else:
        several = f"{len(devices)} process{'es' * (len(devices) > 1)}"
        context.progress(f"{name}: {sum(len(part.requests) for part in waiting)} samples by {several}")
        tables = sampled_by_processes(task, waiting, devices, more=more, ahead=ahead, work=context.work, what=name)
    with closing(tables):
        for part, table in tables:
            kept[part.benchmark].add(table)
            count[part.benchmark](table.num_rows)


def _sampled_here(
    config: BenchmarkEvaluationConfig,
    task: Task,
    benchmarks: Sequence[Benchmark],
    waiting: Sequence[Part],
    more: Callable[[], Sequence[Part]],
    ahead: int,
) -> Generator[tuple[Part, pa.Table]]:
    """Yield parts with their samples, generated in this process; see `sampled_by_processes`."""
    given = list(waiting)
    queue = deque(enumerate(given))
    under_way = 0

    def take(*, wait: bool) -> tuple[int, Part] | None:
        nonlocal under_way
        if not queue and not under_way:
            further = more()
            queue.extend(enumerate(further, len(given)))
            given.extend(further)
        if not queue or under_way >= ahead:
            return None
        number, part = queue.popleft()
        under_way += len(part.requests)
        return number, part

    chats = [chat for benchmark in benchmarks for chat in benchmark.prompts]
    sampler = start_sampler(config, Path(task["model"]), chats)
    with closing(sampler.engine):
        for number, table in sampler.tables(benchmarks, take):
            under_way -= table.num_rows
            yield given[number], table


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("benchmark_evaluation")
