"""Which model an endpoint serves: checked by its names and by its log-probabilities.

A name can be anything that the operator of the server chose. So the log-probabilities of a few prompts, and of the server's greedy
answers to them, are compared with those of the model's files. Two models that differ by less than rounding both pass this check; a name
with the digest of the files, which `ngrpo serve` sets, distinguishes them if the server is honest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ngrpo.errors import ConfigError
from ngrpo.evaluation.endpoint_client import Choice, EndpointClient
from ngrpo.evaluation.endpoint_engine import completion_request
from ngrpo.evaluation.endpoint_names import OtherModelError, served_model
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_model

_PROBES = 4
_LONGEST_PROBE = 256
"""Most tokens of a prompt whose log-probabilities are compared: its first ones."""
_ANSWER = 16
"""Tokens of the greedy answer to it."""
TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest mean difference of log-probabilities that counts as rounding. Between two engines it is about 1e-5 in float32, and a few
hundredths in bfloat16; between two separately trained models it is some tenths or more."""


@dataclass(frozen=True)
class Identity:
    """Evidence that an endpoint serves a model."""

    name: str
    """Name to send requests for."""
    named: bool
    """Whether one of its names is the digest of the model's files."""
    tokens: int
    """Tokens whose log-probabilities were compared."""
    difference: float
    """Their mean absolute difference, in nats."""


def require_served(
    client: EndpointClient, directory: Path, digest: str, *, prompts: Sequence[Sequence[int]], longest: int, dtype: str
) -> Identity:
    """Refuse an endpoint that does not serve a model, or without room for its answers.

    Args:
        client: The endpoint.
        directory: The model's directory, with its weights.
        digest: Digest of the directory.
        prompts: Prompts of the evaluation; a few of them are used as the probe.
        longest: Tokens of the longest prompt and response together.
        dtype: Name of the torch type that the model computes in.

    Raises:
        OtherModelError: It serves another model, or this one in another type.
        ConfigError: It has no model of the requested name, too short a context, or returns no log-probabilities of prompts.
        EngineError: It cannot be reached or fails.
        DataError: The directory has no weights that can be read.
    """
    what = f"evaluation.endpoint.url={client.endpoint.url}"
    model, named = served_model(client.endpoint, client.models(), digest)
    if model.max_model_len is not None and model.max_model_len < longest:
        raise ConfigError(
            f"{what}: has room for {model.max_model_len} tokens, but a prompt and its response may take {longest}; serve the model with "
            f"--max-model-len {longest}, or lower evaluation.max_tokens"
        )
    tokens, difference = _compared(client, model.id, load_model(directory, dtype), _probes(prompts))
    if not difference <= TOLERANCES[dtype]:
        raise OtherModelError(
            f"{what}: {model.id} is another model than {directory}, or computes in another type than model.dtype={dtype!r}: the "
            f"log-probabilities of {tokens} tokens differ by {difference:.2g} on average, where rounding explains {TOLERANCES[dtype]:g}; "
            "serve the files that are evaluated, in that type"
        )
    return Identity(model.id, named, tokens, difference)


def _probes(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return a few different prompts, evenly spread, each cut to the longest allowed."""
    different = [list(prompt) for prompt in dict.fromkeys(tuple(prompt[:_LONGEST_PROBE]) for prompt in prompts)]
    return different[:: -(-len(different) // _PROBES)]


def _compared(
    client: EndpointClient, name: str, model: PreTrainedModel, probes: Sequence[Sequence[int]]
) -> tuple[int, float]:
    """Return how many log-probabilities of endpoint and model were compared, and their mean absolute difference in nats."""
    greedy = Sampling(_ANSWER, temperature=1.0, top_p=1.0)
    differences = []
    for probe in probes:
        request = completion_request(name, probe, greedy, seed=0, ends=[])
        # Greedy decoding, which `Sampling` cannot express. Cutting an answer short does no harm here.
        choice = client.complete(request | {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0})
        theirs = _logprobs(choice, client)
        sequence = torch.tensor([[*probe, *choice.token_ids]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=sequence, use_cache=False).logits[0, :-1].float()
        ours = logits.log_softmax(dim=-1).gather(1, sequence[0, 1:, None])[:, 0].cpu()
        differences.append((torch.tensor(theirs) - ours).abs())
    total = torch.cat(differences)
    return len(total), float(total.mean())


def _logprobs(choice: Choice, client: EndpointClient) -> list[float]:
    """Return the log-probabilities of an endpoint for all tokens of prompt and answer except the first."""
    sequence = [*choice.prompt_token_ids, *choice.token_ids]
    prompt = choice.prompt_logprobs or []
    answer = [] if choice.logprobs is None else choice.logprobs.token_logprobs
    values = [
        None if each is None or token not in each else each[token].logprob
        for token, each in zip(choice.prompt_token_ids[1:], prompt[1:], strict=False)
    ] + answer
    known = [value for value in values if value is not None]
    if len(known) != len(sequence) - 1:
        raise ConfigError(
            f"evaluation.endpoint.url={client.endpoint.url}: no log-probabilities of prompts, which are needed to identify the model; "
            "serve the model with vLLM, and with --max-logprobs above 0"
        )
    return known
