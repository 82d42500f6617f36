"""How good a policy is on problems for validation, by which the best checkpoint of a training is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ngrpo.config import SelectionConfig
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.samples import Sampler
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.grader import Grader
from ngrpo.rollout.engine import RolloutEngine, Sampling


@dataclass(frozen=True)
class Validation:
    """Problems and how they are answered; every checkpoint gets the same seeds.

    Attributes:
        benchmark: The problems.
        config: How many samples, and how they are drawn.
        max_tokens: Longest response.
        tokenizer: The policy's.
        grader: Grades the answers.
        seed: Seed of the run.
    """

    benchmark: Benchmark
    config: SelectionConfig
    max_tokens: int
    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    seed: int

    def verdicts(self, engine: RolloutEngine, *, process: int, processes: int) -> list[bool]:
        """Sample and grade one process's share of the answers, without mixing.

        Args:
            engine: Holds the policy.
            process: Number of this process.
            processes: How many share the work.

        Returns:
            Whether each answer is correct.
        """
        requests = [
            (problem, sample) for problem in range(len(self.benchmark.ids)) for sample in range(self.config.samples)
        ]
        sampling = Sampling(self.max_tokens, self.config.temperature, self.config.top_p)
        sampler = Sampler(engine, self.tokenizer, sampling, self.seed)
        share = requests[process::processes]
        table = graded(sampler.generate(self.benchmark, share), self.benchmark, self.grader) if share else None
        return [] if table is None else table["correct"].to_pylist()
