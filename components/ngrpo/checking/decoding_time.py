"""How long the transformers engine would generate on GPUs: an estimate, for a warning before a run begins."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig

_STEPS_A_SECOND = 50
"""Decode steps a second at best: transformers with a model of 0.5B in bfloat16, one sequence, on an A100 (49.9 tokens/s in the speed
benchmark of Qwen2, qwen.readthedocs.io/en/v2.0/benchmark/speed_benchmark.html). A larger model or a larger batch has fewer."""
_LONG = 1024
"""Tokens of a response from which on it matters."""
_PROBLEMS = 100
_ESTIMATE = "an estimate, at the 50 steps a second that transformers reaches with a model of 0.5B on an A100"


def check_decoding_time(config: RunConfig) -> Iterator[Finding]:
    """Warn of stages with GPUs and long responses whose engine is transformers, with the hours that they would generate at least.

    A batch is decoded until its longest response has ended, which is taken to be as long as it may be.
    """
    rollout, evaluation, training = config.rollout, config.evaluation, config.training
    gpus = (rollout.gpus or config.needs("ngrpo_training").gpus) * config.cluster.nodes
    if rollout.engine == "transformers" and gpus and rollout.max_tokens >= _LONG:
        sequences = training.prompts_per_batch * rollout.group_size
        hours = (
            _hours(sequences, gpus, rollout.batch_size, rollout.max_tokens) * training.steps / training.steps_per_batch
        )
        yield _warning("rollout", f"ngrpo_training would generate rollouts for {hours:,.1f} hours or more")
    gpus = config.needs("benchmark_evaluation").gpus
    if evaluation.engine == "transformers" and gpus and evaluation.max_tokens >= _LONG:
        hours = _hours(_PROBLEMS * evaluation.samples, gpus, evaluation.batch_size, evaluation.max_tokens)
        yield _warning(
            "evaluation",
            f"benchmark_evaluation would generate for {hours:,.1f} hours or more for each model and {_PROBLEMS} problems",
        )


def _hours(sequences: int, gpus: int, batch_size: int, tokens: int) -> float:
    """Return the hours that GPUs decode sequences in batches."""
    batches = -(-sequences // (gpus * batch_size))
    return batches * tokens / _STEPS_A_SECOND / 3600


def _warning(section: str, found: str) -> Finding:
    setting = f"{section}.engine"
    return Finding(
        "warning", setting, f"{setting}='transformers' on GPUs: {found} ({_ESTIMATE})", f"set {setting} to 'vllm'"
    )
