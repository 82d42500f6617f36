"""Stage `benchmark_evaluation`: measure the warm start and the trained model on the same problems with the same seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.data.models import usable_tokens
from ngrpo.evaluation.benchmark import read_benchmarks
from ngrpo.evaluation.grading import Grader
from ngrpo.evaluation.protocol import benchmark_protocol, revisions
from ngrpo.evaluation.results import benchmark_result, flat_metrics
from ngrpo.evaluation.samples import Part, Sampler, parts
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.engines import start_engine
from ngrpo.rollout.loading import load_model, load_tokenizer
from ngrpo.rollout.mixers import build_mixer, end_marker_ids
from ngrpo.storage.digest import directory_digest

CONFIG = BenchmarkEvaluationConfig

MODELS = ("warm_start", "trained")


def run(config: BenchmarkEvaluationConfig, inputs: Mapping[str, Path], output: Path, work: Path) -> None:
    """Write `samples/<model>/<benchmark>.parquet`, `evaluation.json` and `metrics.json`.

    Args:
        config: Settings of the stage.
        inputs: `dataset`, `warm_start`, `trained`.
        output: Empty directory for the artifact.
        work: Directory that survives a killed try: samples finished there are not generated again.

    Raises:
        DataError: A benchmark is damaged, empty or repeats ids, or a model or its tokenizer cannot be used.
        ConfigError: `evaluation.mixing` asks for what the model's vocabulary cannot give.
    """
    benchmarks = read_benchmarks(inputs["dataset"] / "benchmarks")
    data_revisions = revisions(inputs["dataset"])
    evaluation: dict[str, dict[str, object]] = {}
    protocols: dict[str, dict[str, object]] = {}
    metrics: dict[str, float] = {}
    for name in MODELS:
        planned = {
            benchmark.name: list(parts(benchmark, config.evaluation, work / "samples" / name / benchmark.name))
            for benchmark in benchmarks
        }
        _generate(config, name, inputs[name] / "model", planned)
        tokenizer = AutoTokenizer.from_pretrained(inputs[name] / "model")
        evaluation[name], protocols[name] = {}, {}
        for benchmark in benchmarks:
            prompts = tokenizer.apply_chat_template(benchmark.prompts, add_generation_prompt=True, tokenize=False)
            protocols[name][benchmark.name] = benchmark_protocol(
                benchmark, prompts, config.evaluation, data_revisions.get(benchmark.name)
            )
            samples = pa.concat_tables([pq.read_table(part.path) for part in planned[benchmark.name]])
            path = output / "samples" / name / f"{benchmark.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(samples, path)
            result = benchmark_result(samples, config.evaluation, config.seed)
            evaluation[name][benchmark.name] = result
            metrics |= flat_metrics(result, f"{name}/{benchmark.name}")
            low, high = result["mean_ci"]
            print(
                f"{name} {benchmark.name}: mean@{result['n_samples']} {result['mean']:.1%} [{low:.1%}, {high:.1%}], "
                + ", ".join(f"pass@{k} {value:.1%}" for k, value in result["pass_at_k"].items()),
                flush=True,
            )
    weights = {name: directory_digest(inputs[name] / "model") for name in MODELS}
    (output / "evaluation.json").write_text(
        json.dumps({"models": evaluation, "protocols": protocols, "weights": weights}), encoding="utf-8"
    )
    (output / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def _generate(config: BenchmarkEvaluationConfig, name: str, model: Path, planned: Mapping[str, list[Part]]) -> None:
    """Write the parts that are not finished yet; with none, the model is not even loaded."""
    if all(part.path.exists() for pieces in planned.values() for part in pieces):
        return
    with Grader() as grader:
        chats = [chat for pieces in planned.values() for chat in pieces[0].benchmark.prompts]
        sampler = _sampler(config, model, chats, grader)
        with closing(sampler.engine):
            for pieces in planned.values():
                total = pieces[-1].requests.stop
                for part in pieces:
                    if not part.path.exists():
                        sampler.write(part)
                    print(f"{name} {part.benchmark.name}: {part.requests.stop}/{total} samples", flush=True)


def _sampler(config: BenchmarkEvaluationConfig, directory: Path, chats: Sequence[Any], grader: Grader) -> Sampler:
    model = load_model(directory, config.model.dtype)
    tokenizer = load_tokenizer(directory, model.get_input_embeddings().num_embeddings)
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
        grader=grader,
        config=config.evaluation,
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
    )
    return build_mixer(mixing, index, end_marker_ids(mixing, tokenizer))


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("benchmark_evaluation")
