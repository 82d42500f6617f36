"""The sampler of a served model: with the prompts, seeds, sampling settings and stop tokens of a local evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ngrpo.config import BenchmarkEvaluationConfig, EndpointConfig
from ngrpo.data.model_directory import read_config
from ngrpo.evaluation.endpoint_client import EndpointClient
from ngrpo.evaluation.endpoint_engine import EndpointEngine
from ngrpo.evaluation.endpoint_identity import require_served
from ngrpo.evaluation.samples import Sampler
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_tokenizer, saved_end_of_sequence_ids
from ngrpo.storage.digest import model_digest

_MOST_AT_ONCE = 512
"""Most requests in flight: each has a connection and a thread."""
_SECONDS_TO_BEGIN = 600.0
"""Seconds that a request may wait for its turn; after that, at least one token a second is expected."""


def start_endpoint_sampler(
    config: BenchmarkEvaluationConfig, endpoint: EndpointConfig, directory: Path, chats: Sequence[Any]
) -> Sampler:
    """Make sure that an endpoint serves a model, and return a sampler that uses it; the caller closes the engine.

    Args:
        config: Settings of the stage.
        endpoint: Where the model is served.
        directory: Directory of the model: its tokenizer and chat template make the prompts, and its weights are compared with the endpoint.
        chats: All prompts of the evaluation, as chats.

    Raises:
        ConfigError: The endpoint serves another model, has too little room, or refuses the token.
        EngineError: It cannot be reached, fails, or is not a vLLM server.
        DataError: Model or tokenizer cannot be used.
    """
    rows = read_config(directory, f"model directory {directory}").get_text_config().vocab_size
    tokenizer = load_tokenizer(directory, rows, config.model.template_date)
    prompts = tokenizer.apply_chat_template(list(chats), add_generation_prompt=True, tokenize=True, return_dict=False)
    sampling = Sampling(config.evaluation.max_tokens, config.evaluation.temperature, config.evaluation.top_p)
    at_once = min(config.evaluation.batch_size, _MOST_AT_ONCE)
    client = EndpointClient(endpoint, connections=at_once, seconds=_SECONDS_TO_BEGIN + sampling.max_tokens)
    identity = require_served(
        client,
        directory,
        model_digest(directory),
        prompts=prompts,
        longest=max(map(len, prompts)) + sampling.max_tokens,
        dtype=config.model.dtype,
    )
    said = "its digest and" if identity.named else "its"
    print(
        f"{endpoint.url}: {identity.name} is the evaluated model, according to {said} {identity.tokens} log-probabilities (mean difference "
        f"{identity.difference:.2g})",
        file=sys.stderr,
        flush=True,
    )
    engine = EndpointEngine(
        client, identity.name, saved_end_of_sequence_ids(directory, tokenizer), vocabulary=rows, at_once=at_once
    )
    return Sampler(engine, tokenizer, sampling, config.seed)
