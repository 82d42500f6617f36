"""The arguments of `vllm.LLM` that make it mix."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

_CPU_CACHE_BYTES = 4 << 30
"""Most memory for keys and values on a CPU, where vLLM would otherwise take a share of all memory."""

MIXING = {
    "language_model_only": True,  # models of images and text get text only; without a tokenizer vLLM could not start them otherwise
    "enable_prompt_embeds": True,  # passes input embeddings to the model, which hold the mixtures
    "worker_cls": "ngrpo.rollout.vllm.worker.MixingWorker",
    "scheduler_cls": "ngrpo.rollout.vllm.scheduler.mixing_scheduler",
}


def platform_defaults() -> dict[str, Any]:
    """Return the defaults for this platform."""
    return {"kv_cache_memory_bytes": _CPU_CACHE_BYTES, "enforce_eager": True} if current_platform.is_cpu() else {}
