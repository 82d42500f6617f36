"""Estimate how long the transformers engine would generate on GPUs, to warn before a run begins."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig

_STEPS_A_SECOND = 50
"""Decode steps per second at best: transformers with a 0.5B model in bfloat16, one sequence, on an A100 (49.9 tokens/s in the speed
benchmark of Qwen2, qwen.readthedocs.io/en/v2.0/benchmark/speed_benchmark.html). Larger models and batches are slower."""
_LONG = 1024
"""Response length, in tokens, from which on to warn."""
_PROBLEMS = 100
_ESTIMATE = "estimated from 50 steps per second, which transformers reaches with a 0.5B model on an A100"


def check_decoding_time(config: RunConfig) -> Iterator[Finding]:
    """Warn about GPU stages that generate long responses with the transformers engine; name the hours that they need at least.

    A batch is decoded until its longest response ends, which is assumed to reach the limit.
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
    """Return the hours that GPUs need to decode sequences in batches."""
    batches = -(-sequences // (gpus * batch_size))
    return batches * tokens / _STEPS_A_SECOND / 3600


def _warning(section: str, found: str) -> Finding:
    setting = f"{section}.engine"
    return Finding(
        "warning", setting, f"{setting}='transformers' on GPUs: {found} ({_ESTIMATE})", f"set {setting} to 'vllm'"
    )
