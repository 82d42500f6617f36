"""Find problems of a base model that would stop later stages, from configuration and tokenizer in a second: no weights, no GPU."""

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
"""Rope types whose `max_position_embeddings` already includes the scaling."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a base model.

    Attributes:
        rows: Rows of the embedding matrix; None if unknown.
        positions: Longest sequence, in tokens, that the model has positions for; None if there is no limit or it is unknown.
        served: The same limit in vLLM, which interprets some settings differently.
        ends: Ids of the tokens that end a response.
        notes: Notes for the user, one line each; they do not stop a run.
        on_cluster: Problems that would stop a run on a cluster, one line each.
        linear: Names of the linear layers, which can have adapters.
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
    """Check that later stages can use a base model.

    Args:
        directory: Directory with its configuration; weights are not read.
        tokenizer: Its tokenizer, with a usable chat template.
        label: Name of the model in errors, for example `model 'org/name'`.
        services: The uses of vLLM in the run.
        stored: Shapes of the tensors in the model's files, by name; None if they are not available.

    Returns:
        Limits of the model and notes about it.

    Raises:
        DataError: The model cannot be trained or sampled from, because of its class, generation settings, tokenizer or weights. The
            message names the cure.
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
    """Refuse a model whose files lack weights, or hold them in shapes that differ from the configuration.

    Raises:
        DataError: A weight is missing or has another shape.
    """
    missing = missing_weights(model, stored)
    if missing:
        raise DataError(
            f"{label}: {len(missing)} of its weights are not in its files ({missing[0]}), and would be random numbers; copy the model "
            "again, or save it with save_pretrained"
        )
    for name, parameter in model.named_parameters():
        held = stored.get(name, parameter.shape)  # tensors under another name are checked when they are loaded
        if tuple(held) != tuple(parameter.shape):
            raise DataError(
                f"{label}: its files hold {name} with the shape {list(held)}, and config.json says {list(parameter.shape)}; copy both "
                "from the same model"
            )


def positions_of(config: PretrainedConfig) -> int | None:
    """Return the longest sequence, in tokens, that a model has positions for; None if there is no limit (ALiBi, recurrent layers)."""
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    return max([positions, *(_scaled(positions, one) for one in _ropes(rope))])


def _ropes(rope: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rope parameters of a model; some models have a set for each type of layer."""
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
    """Refuse responses that could exceed the context length of the model.

    Args:
        facts: Facts about the model.
        label: The setting of the prompts' data set, for example `data.train`.
        prompt: Length of the longest prompt, in tokens.
        setting: The setting that limits responses, for example `rollout.max_tokens`.
        response: Its value, in tokens.
        engine: The engine that generates, `transformers` or `vllm`.

    Raises:
        DataError: Prompt and response together exceed the context length.
    """
    limits = [facts.positions, facts.served if engine == "vllm" else None]
    positions = min((limit for limit in limits if limit is not None), default=None)
    if positions is not None and prompt + response > positions:
        room = positions - prompt
        what = "the model has" if positions == facts.positions else "vLLM serves the model with"
        raise DataError(
            f"{setting}={response}: with the longest prompt of {label}, {prompt} tokens, a sequence takes {prompt + response}, but "
            f"{what} {positions} positions; "
            + (f"set {setting} to at most {room}" if room > 0 else "remove the long prompts")
            + ", or use a model with a longer context"
        )
