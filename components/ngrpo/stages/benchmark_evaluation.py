"""Stage `benchmark_evaluation`: measure base model, warm start and trained model on the same problems with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.contracts.evaluation import EVALUATION, Evaluation, Protocol, Result, write_evaluation
from ngrpo.contracts.layout import LAYOUT
from ngrpo.contracts.metrics import write_metrics
from ngrpo.data.model_directory import read_config
from ngrpo.data.models import materialize, usable_tokens
from ngrpo.evaluation.benchmark import read_benchmarks
from ngrpo.evaluation.protocol import benchmark_protocol, revisions
from ngrpo.evaluation.results import benchmark_result, flat_metrics
from ngrpo.evaluation.samples import KeptSamples, LocalSamples, Sampler, SampleStore, parts
from ngrpo.evaluation.stored_evaluation import answers_of, statistics_of
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.grader import Grader
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.configured_mixer import build_mixer, configured_end_marker
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_model, load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.stages.keys import canonical_json, code_version, digest
from ngrpo.stages.libraries import GENERATING, installed, selected
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.user_code.loading import write_code


def run(config: BenchmarkEvaluationConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `samples/<model>/<benchmark>.parquet`, `evaluation.json`, `metrics.json` and the `code/` of graders of the user's.

    The models are `base`, `warm_start` and `trained`; without a warm start the second is the first and stands for both.

    Samples are kept below `samples/` in the object store (`NGRPO_STORE`), under a key of everything that they depend on: those of a
    try that was killed, on whatever machine, and those of an evaluation with fewer samples are not generated again. Kept samples that
    are damaged are.

    `evaluation.json` holds the gold answers too, and nothing else of the problems: with them, other graders can grade the samples again.

    Args:
        config: Settings of the stage.
        inputs: `dataset`, `warm_start`, `trained`.
        output: Empty directory for the artifact.
        context: Keeps the samples: in its store, or in its work directory.

    Raises:
        DataError: A benchmark is damaged, empty or repeats ids, or a model or its tokenizer cannot be used.
        ConfigError: `evaluation.mixing` asks for what the model's vocabulary cannot give.
        StoreError: The object store cannot be reached, or samples cannot be kept.
    """
    benchmarks = read_benchmarks(inputs["dataset"] / "benchmarks", config.benchmark_gradings)
    data_revisions = revisions(inputs["dataset"])
    store = _sample_store(context)
    all_results: dict[str, dict[str, Result]] = {}
    all_protocols: dict[str, dict[str, Protocol]] = {}
    weights: dict[str, str] = {}
    metrics: dict[str, float] = {}
    with Grader() as grader:
        for name, directory in _models(config, inputs, context.work).items():
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
            _generate(config, name, directory, kept, context.progress)
            for samples in kept:
                benchmark = samples.benchmark
                by_string = benchmark.name in config.evaluation.string_match
                table = graded(samples.table(), benchmark, grader, by_string=by_string)
                path = output / "samples" / name / f"{benchmark.name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, path)
                result = benchmark_result(table, config.evaluation, config.seed)
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
    write_evaluation(output / EVALUATION, evaluation)
    for benchmark in benchmarks:
        write_code(benchmark.grading.compare.code, output / "code" / benchmark.name)
    if config.evaluation.mixing is not None and config.evaluation.mixing.reference is not None:
        write_code(config.evaluation.mixing.reference.code, output / "code" / "evaluation.mixing.strategy")
    write_metrics(output, metrics)


def _models(config: BenchmarkEvaluationConfig, inputs: Mapping[str, Path], work: Path) -> dict[str, Path]:
    """Return the directory of each model, in the order of the pipeline."""
    models = {name: inputs[name] / "model" for name in ("warm_start", "trained")}
    return (
        {"base": materialize(config.model.source, work / "base_model", config.model)} | models
        if config.warm_start.steps
        else models
    )


def _sample_store(context: Context) -> SampleStore:
    if context.store is None:
        return LocalSamples(context.work / "samples")
    return ObjectStore(f"{context.store.rstrip('/')}/samples")


def _samples_key(config: BenchmarkEvaluationConfig, weights: str, prompts: str) -> str:
    """Return what stands for everything that a sample depends on besides benchmark, problem and sample id."""
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
    model: Path,
    kept: Sequence[KeptSamples],
    progress: Callable[[str], None],
) -> None:
    """Generate the samples that are missing; with none, the model is not even loaded."""
    if not any(samples.missing for samples in kept):
        return
    sampler = _sampler(config, model, [chat for samples in kept for chat in samples.benchmark.prompts])
    with closing(sampler.engine):
        for samples in kept:
            total = len(samples.benchmark.ids) * samples.samples
            requests = samples.missing
            done = total - len(requests)
            for part in parts(requests, config.evaluation.batch_size):
                samples.add(sampler.generate(samples.benchmark, part))
                done += len(part)
                progress(f"{name} {samples.benchmark.name}: {done}/{total} samples")


def _sampler(config: BenchmarkEvaluationConfig, directory: Path, chats: Sequence[Any]) -> Sampler:
    model = load_model(directory, config.model.dtype)
    tokenizer = load_tokenizer(directory, model.get_input_embeddings().num_embeddings, config.model.template_date)
    return Sampler(
        engine=start_engine(
            config.evaluation,
            model=model,
            directory=directory,
            tokenizer=tokenizer,
            chats=chats,
            dtype=config.model.dtype,
        ),
        tokenizer=tokenizer,
        sampling=Sampling(config.evaluation.max_tokens, config.evaluation.temperature, config.evaluation.top_p),
        seed=config.seed,
        mixer=_mixer(config, model, tokenizer),
    )


def _mixer(
    config: BenchmarkEvaluationConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Mixer | None:
    """Return the mixer of `evaluation.mixing` over the model's own embedding, or none where mixing is off."""
    mixing = config.evaluation.mixing
    if mixing is None or mixing.strategy == "token":
        return None
    embedding = model.get_input_embeddings().weight
    index = NeighborIndex.build(
        embedding,
        usable_tokens(tokenizer, embedding.shape[0]),
        candidates=config.neighbors.candidates,
        block_rows=config.neighbors.block_rows,
        metric=config.neighbors.metric,
    )
    marker = configured_end_marker(mixing, tokenizer, embedding.shape[0])
    return build_mixer(mixing, index, marker and marker.to(embedding.device))


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("benchmark_evaluation")
