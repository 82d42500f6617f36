"""Generate and grade the samples of a benchmark, in parts that survive a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from ngrpo.config import EvaluationConfig
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.grading import Grader
from ngrpo.evaluation.results import SAMPLES
from ngrpo.mixing.mixer import Mixer
from ngrpo.rollout.engine import RolloutEngine, Sampling
from ngrpo.rollout.seeds import request_seed

_PARTS = 10
"""Parts of a benchmark at most: each is a line of progress, and what a kill can cost."""


@dataclass(frozen=True)
class Part:
    """Some of the samples of a benchmark, and the file that holds them once they are finished.

    Attributes:
        benchmark: The benchmark.
        requests: Which samples: request r is sample `r % samples` of problem `r // samples`.
        path: The file.
    """

    benchmark: Benchmark
    requests: range
    path: Path


def parts(benchmark: Benchmark, config: EvaluationConfig, directory: Path) -> Iterator[Part]:
    """Cut the samples of a benchmark into parts of whole batches, so that a resumed run decodes the same batches."""
    total = len(benchmark.ids) * config.samples
    batches = -(-total // config.batch_size)
    size = -(-batches // _PARTS) * config.batch_size
    for start in range(0, total, size):
        yield Part(benchmark, range(start, min(start + size, total)), directory / f"{start:09d}.parquet")


@dataclass(frozen=True)
class Sampler:
    """Generates and grades samples with one model.

    Attributes:
        engine: Generates.
        tokenizer: Writes prompts as chats and reads responses.
        grader: Grades.
        config: How to sample.
        seed: Seed of the run. With it, a sample depends on benchmark, problem and sample id and on nothing else: two models get
            the same seeds, and more samples leave the first ones as they were.
        mixer: Mixing at inference, or none.
    """

    engine: RolloutEngine
    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    config: EvaluationConfig
    seed: int
    mixer: Mixer | None = None

    def write(self, part: Part) -> None:
        """Make the samples of a part and write them, whole or not at all."""
        rows = self._rows(part)
        part.path.parent.mkdir(parents=True, exist_ok=True)
        partial = part.path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), partial)
        partial.replace(part.path)

    def _rows(self, part: Part) -> list[dict[str, object]]:
        benchmark, config = part.benchmark, self.config
        requests = [divmod(request, config.samples) for request in part.requests]
        problems = sorted({problem for problem, _ in requests})
        ids = self.tokenizer.apply_chat_template(
            [benchmark.prompts[problem] for problem in problems],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        prompts = dict(zip(problems, ids, strict=True))
        rollouts = self.engine.generate(
            [prompts[problem] for problem, _ in requests],
            [request_seed(self.seed, benchmark.name, benchmark.ids[problem], sample) for problem, sample in requests],
            Sampling(config.max_tokens, config.temperature, config.top_p),
            self.mixer,
        )
        texts = self.tokenizer.batch_decode([rollout.token_ids for rollout in rollouts], skip_special_tokens=True)
        answers = [benchmark.answers[problem] for problem, _ in requests]
        grades = self.grader.grade(list(zip(texts, answers, strict=True)))
        return [
            {
                "problem_id": benchmark.ids[problem],
                "sample_id": sample,
                "text": text,
                "tokens": len(rollout.token_ids),
                "finish_reason": rollout.finish_reason,
                "extracted": grade.extracted,
                "correct": grade.correct,
                "grader_error": grade.error,
            }
            for (problem, sample), text, rollout, grade in zip(requests, texts, rollouts, grades, strict=True)
        ]
