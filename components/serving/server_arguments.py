"""Arguments of vLLM's server for a model of a run, on one machine or a cluster. Data type and context length follow the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ngrpo.config import DeployConfig, RunConfig

MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The module behind `vllm serve`. That command fails in the CPU build, because it looks for the distribution `vllm`."""
_CPU_CACHE_BYTES = 4 << 30
"""Memory of the KV cache on CPUs, where vLLM would otherwise take a share of all memory."""


def served_length(config: RunConfig | DeployConfig, positions: int | None) -> int:
    """Return the context length, prompt and response together, in tokens.

    Args:
        config: Configuration of the run that trained the model.
        positions: The longest sequence of the model in tokens; None for no limit.
    """
    asked = config.data.max_prompt_tokens + max(config.evaluation.max_tokens, config.rollout.max_tokens)
    return asked if positions is None else min(asked, positions)


def server_arguments(
    config: RunConfig | DeployConfig,
    *,
    model: str,
    names: Sequence[str],
    host: str,
    port: int,
    length: int,
    on_cpu: bool,
) -> list[str]:
    """Return the command line of the server, after the interpreter.

    Args:
        config: Configuration of the run that trained the model.
        model: Directory of the model, where the server runs.
        names: Names of the model in the API.
        host: Address to listen at.
        port: Port to listen at.
        length: See `served_length`.
        on_cpu: Whether vLLM is the CPU build.
    """
    vllm = config.evaluation.vllm
    options: dict[str, Any] = {"kv_cache_memory_bytes": _CPU_CACHE_BYTES, "enforce_eager": True} if on_cpu else {}
    options |= {
        "dtype": config.model.dtype,
        "max_model_len": length,
        "max_num_seqs": config.evaluation.batch_size,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "gpu_memory_utilization": vllm.gpu_memory_utilization,
    }
    options |= vllm.options
    fixed = ["--model", model, "--served-model-name", *names, "--host", host, "--port", str(port)]
    return ["-m", MODULE, *fixed, *_flags(options)]


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield arguments of vLLM's `EngineArgs` in the form of its command line."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, list):
            yield from (f"--{flag}", *map(_text, value))
        else:
            yield from (f"--{flag}", _text(value))


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
