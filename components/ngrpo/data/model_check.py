"""What later stages would find wrong with a base model, found in a second from its settings and tokenizer: no weights, no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.data.adapter_targets import linear_layers
from ngrpo.data.chat import end_of_turn
from ngrpo.data.model_class import input_embedding, missing_weights, outline
from ngrpo.data.model_directory import generation_problem, read_config, read_generation_config
from ngrpo.data.model_files import require_unquantized
from ngrpo.data.token_rows import require_rows
from ngrpo.data.vllm_service import Service, cluster_problem, require_service, served_positions
from ngrpo.errors import DataError

_WITHIN = {"default", "llama3", "longrope", "su", "proportional"}
"""Kinds of rotary positions whose `max_position_embeddings` counts their scaling already."""


@dataclass(frozen=True)
class ModelFacts:
    """What an examination found.

    Attributes:
        rows: Rows of the embedding matrix; none where they are not known.
        positions: Longest sequence that the model has positions for; none where it has no limit, or none that is known.
        served: The same of vLLM, which reads some settings otherwise.
        ends: Tokens that end a response.
        notes: What a person should know, one line each; none of it stops a run.
        on_cluster: What would stop a run on a cluster, one line each.
        linear: Names of its linear layers, which may have adapters.
    """

    rows: int | None = None
    positions: int | None = None
    served: int | None = None
    ends: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    on_cluster: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()


def examine_model(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    services: Sequence[Service] = (),
    stored: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelFacts:
    """Look at a base model as later stages will use it.

    Args:
        directory: Directory with its configuration; weights are not read.
        tokenizer: Its tokenizer, with a chat template that can be used.
        label: What the model is called in errors, for example `model 'org/name'`.
        services: Where vLLM is to serve it.
        stored: Shapes of the tensors in its files, by name; none where they are not at hand.

    Returns:
        What limits it, and what to know about it.

    Raises:
        DataError: It cannot be trained or sampled from here: its class, its generation settings or its tokenizer do not fit. The message
            says what to do.
    """
    config = read_config(directory, label)
    require_unquantized(directory, label)
    model = outline(config, label)
    if stored is not None:
        _require_weights(model, stored, label)
    for service in services:
        require_service(model, service, label)
    on_cluster = tuple(filter(None, (cluster_problem(model, service) for service in services)))
    rows = model.get_parameter(input_embedding(model)).shape[0]
    require_rows(tokenizer, rows, label)
    settings = read_generation_config(directory, label)
    declared = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ends = {token for token in (*declared, tokenizer.eos_token_id) if token is not None}
    outside = sorted(token for token in ends if not 0 <= token < rows)
    if outside:
        raise DataError(
            f"{label}: token {outside[0]} ends a response (eos_token_id), but the embedding matrix has {rows} rows, so no response "
            "ends; correct eos_token_id in generation_config.json in a copy of the model"
        )
    turn = end_of_turn(tokenizer)
    if not ends and turn is None:
        raise DataError(
            f"{label}: no token ends a response: neither tokenizer nor generation_config.json names an eos_token_id, and the chat "
            "template ends a turn without a special token; name one in a copy of the model"
        )
    notes = []
    problem = generation_problem(settings)
    if problem is not None:
        notes.append(
            f"{label}: generation_config.json contradicts itself, so only its tokens are kept in the trained model ({problem[:200]})"
        )
    if turn is None:
        notes.append(
            f"{label}: its chat template ends a turn without a special token: responses end only with "
            f"{tokenizer.convert_ids_to_tokens(sorted(ends))}"
        )
    elif turn not in ends:
        notes.append(
            f"{label}: its chat template ends a turn with {tokenizer.convert_ids_to_tokens(turn)!r} (token {turn}), which the model does "
            "not declare as eos_token_id: responses end there too, and the trained model declares it"
        )
    found = ends | ({turn} if turn is not None else set())
    return ModelFacts(
        rows,
        positions_of(config),
        served_positions(config),
        tuple(sorted(found)),
        tuple(notes),
        on_cluster,
        linear_layers(model),
    )


def _require_weights(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]], label: str) -> None:
    """Make sure that the files of a model hold its weights, with the shapes of its configuration.

    Raises:
        DataError: They do not.
    """
    missing = missing_weights(model, stored)
    if missing:
        raise DataError(
            f"{label}: {len(missing)} of its weights are not in its files ({missing[0]}), and would be random numbers; copy the model "
            "again, or save it with save_pretrained"
        )
    for name, parameter in model.named_parameters():
        held = stored.get(name, parameter.shape)  # what has another name in the files is looked at when it is loaded
        if tuple(held) != tuple(parameter.shape):
            raise DataError(
                f"{label}: its files hold {name} with the shape {list(held)}, and config.json says {list(parameter.shape)}; copy both "
                "from the same model"
            )


def positions_of(config: PretrainedConfig) -> int | None:
    """Return the longest sequence that a model has positions for; none where nothing limits it (ALiBi, recurrent layers)."""
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    return max([positions, *(_scaled(positions, one) for one in _ropes(rope))])


def _ropes(rope: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rotary settings of a model: some have one for each kind of layer."""
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


def _scaled(positions: int, rope: Mapping[str, Any]) -> int:
    kind = rope.get("rope_type", "default")
    if kind in _WITHIN:
        return positions
    return int(rope.get("original_max_position_embeddings", positions) * rope.get("factor", 1.0))


def require_positions(
    facts: ModelFacts, label: str, prompt: int, setting: str, response: int, engine: str = "transformers"
) -> None:
    """Refuse responses that would run past the last position of the model.

    Args:
        facts: The examination of the model.
        label: Where the prompts are from, for example `data.train`.
        prompt: Tokens of the longest prompt.
        setting: The setting of the longest response, for example `rollout.max_tokens`.
        response: Its value.
        engine: The engine that generates.

    Raises:
        DataError: Prompt and response do not fit.
    """
    limits = [facts.positions, facts.served if engine == "vllm" else None]
    positions = min((limit for limit in limits if limit is not None), default=None)
    if positions is not None and prompt + response > positions:
        room = positions - prompt
        what = "the model has" if positions == facts.positions else "vLLM serves the model with"
        raise DataError(
            f"{setting}={response}: with the longest prompt of {label}, {prompt} tokens, a sequence takes {prompt + response}, but "
            f"{what} {positions} positions; "
            + (f"set {setting} to at most {room}" if room > 0 else "leave out what is so long")
            + ", or use a model with a longer context"
        )
