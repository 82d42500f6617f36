"""The parts of vLLM that mixing hooks into, checked before they are used: they are not a public interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import vllm

from ngrpo.errors import ConfigError

SUPPORTED = "0.32."


def require_plain(config: Any) -> None:
    """Refuse a vLLM configuration that mixing does not support.

    Args:
        config: A `vllm.config.VllmConfig`.

    Raises:
        ConfigError: It is not supported.
    """
    for name, used in {
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        "speculative decoding": config.speculative_config is not None,
        "batch-sharded sampling": config.parallel_config.enable_batch_sharded_sampling,
    }.items():
        if used:
            raise ConfigError(f"vLLM with {name} cannot mix: switch it off or set rollout.engine=transformers")


def require_hooks(hooks: Mapping[Callable[..., Any], tuple[str, ...]]) -> None:
    """Refuse a vLLM version that mixing was not written for.

    Args:
        hooks: The functions that are overridden, each with the names of its first parameters after `self`.

    Raises:
        ConfigError: The version is another one, or a function looks different.
    """
    if not vllm.__version__.startswith(SUPPORTED):
        raise ConfigError(
            f"vllm=={vllm.__version__} cannot mix: install vllm=={SUPPORTED}* or set rollout.engine=transformers"
        )
    for function, expected in hooks.items():
        found = tuple(inspect.signature(function).parameters)[1:]
        if found[: len(expected)] != expected:
            raise ConfigError(
                f"vllm=={vllm.__version__}: {function.__qualname__} takes {', '.join(found)} where {', '.join(expected)} was "
                f"expected: install an unchanged vllm=={SUPPORTED}*"
            )
