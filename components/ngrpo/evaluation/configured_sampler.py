"""Build the sampler of an evaluation from its settings: tokenizer, engine and mixer of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.data.embedding import read_embedding
from ngrpo.data.model_directory import read_config
from ngrpo.data.models import usable_tokens
from ngrpo.evaluation.endpoint_sampler import start_endpoint_sampler
from ngrpo.evaluation.samples import Sampler
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.configured_mixer import build_mixer, configured_end_marker
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_tokenizer


def start_sampler(config: BenchmarkEvaluationConfig, directory: Path, chats: Sequence[Any]) -> Sampler:
    """Load a model and start an engine for it, or connect to the endpoint that serves it; the caller closes the engine.

    Args:
        config: Settings of the stage.
        directory: Directory of the model.
        chats: All prompts of the evaluation, as chats.

    Raises:
        DataError: Model or tokenizer cannot be used.
        EngineError: vLLM is not installed, or cannot serve the model.
        ConfigError: `evaluation.mixing` does not fit the vocabulary, vLLM cannot mix with these settings, or the endpoint serves another
            model.
    """
    if config.evaluation.endpoint is not None:
        return start_endpoint_sampler(config, config.evaluation.endpoint, directory, chats)
    rows = read_config(directory, f"model directory {directory}").get_text_config().vocab_size
    tokenizer = load_tokenizer(directory, rows, config.model.template_date)
    mixer = _mixer(config, directory, tokenizer)  # before the engine, which takes all free memory
    engine = start_engine(
        config.evaluation,
        model=None,
        directory=directory,
        tokenizer=tokenizer,
        chats=chats,
        dtype=config.model.dtype,
    )
    return Sampler(
        engine=engine,
        tokenizer=tokenizer,
        sampling=Sampling(config.evaluation.max_tokens, config.evaluation.temperature, config.evaluation.top_p),
        seed=config.seed,
        mixer=mixer,
    )


def _mixer(config: BenchmarkEvaluationConfig, directory: Path, tokenizer: PreTrainedTokenizerBase) -> Mixer | None:
    """Return the mixer of `evaluation.mixing` over the model's own embedding; None if mixing is off."""
    mixing = config.evaluation.mixing
    if mixing is None or mixing.strategy == "token":
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedding = read_embedding(directory).to(device, getattr(torch, config.model.dtype))
    index = NeighborIndex.build(
        embedding,
        usable_tokens(tokenizer, embedding.shape[0]),
        candidates=config.neighbors.candidates,
        block_rows=config.neighbors.block_rows,
        metric=config.neighbors.metric,
    )
    torch.cuda.empty_cache()  # the engine may be another process
    marker = configured_end_marker(mixing, tokenizer, embedding.shape[0])
    return build_mixer(mixing, index, marker and marker.to(embedding.device))
