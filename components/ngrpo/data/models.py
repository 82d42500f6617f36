"""Provide base models as local directories for `from_pretrained`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ngrpo.config import BaseModelSource, CopiedModel, InitializedModel, PackagedModel, RegisteredModel
from ngrpo.config.sections import TEMPLATE_DATE, ChatFormat
from ngrpo.data import hub_model, initialized, packaged, registered
from ngrpo.data.chat_format import write_chat_format
from ngrpo.data.copies import is_copy
from ngrpo.data.locations import is_bucket, local_directory
from ngrpo.data.model_check import ModelFacts, examine_model
from ngrpo.data.model_directory import (
    read_bare_tokenizer,
    read_config,
    read_tokenizer,
    require_weights,
)
from ngrpo.data.model_files import tensor_shapes
from ngrpo.data.token_rows import require_rows
from ngrpo.data.vllm_service import Service

# Names of reserved rows, in vocabularies that do not list them as added tokens.
_PLACEHOLDER = re.compile(r"<\|.*\|>|\[unused\d+\]|<unused_?\d+>|<extra_id_\d+>|<\|?reserved.*>|\[PAD\d*\]")


AS_IT_IS = ChatFormat()
"""No chat settings: the model's own template and tokens are used."""


def materialize(source: BaseModelSource, directory: Path, chat: ChatFormat | None = AS_IT_IS) -> Path:
    """Return a directory with weights, configuration, tokenizer and chat template of a base model.

    The same source always gives the same bytes.

    Args:
        source: Source of the model.
        directory: Directory for its files; existing files are replaced.
        chat: The chat settings; None if the model does not need a chat template.

    Returns:
        `directory`, or, if chat settings are given, a directory beside it. Its files can be links into the hub's cache or to the user's
        model: do not write to them.

    Raises:
        DataError: The model cannot be reached, has custom code or pickles, lacks weights, tokenizer or a usable chat template, or its
            parts do not fit together.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    path = _provide(source, directory, chat, weights=True)
    label = _label(source)
    rows = read_config(path, label).get_text_config().vocab_size
    require_weights(path, label)
    tokenizer = read_bare_tokenizer(path, label) if chat is None else read_tokenizer(path, label)
    require_rows(tokenizer, rows, label)
    return path


def materialize_tokenizer(
    source: BaseModelSource, directory: Path, day: date = TEMPLATE_DATE, chat: ChatFormat = AS_IT_IS
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, without its weights.

    Args:
        source: Source of the model.
        directory: Directory for the tokenizer's files; existing files are replaced.
        day: Date that the chat template sees as today (`model.template_date`).
        chat: The chat settings.

    Raises:
        DataError: The model cannot be reached, has custom code, or lacks a tokenizer or a usable chat template.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    return read_tokenizer(_provide(source, directory, chat, weights=False), _label(source), day)


def bare_tokenizer(source: BaseModelSource, directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, without its weights; it does not need a chat template.

    Args:
        source: Source of the model.
        directory: Directory for the tokenizer's files; existing files are replaced.

    Raises:
        DataError: The model cannot be reached, has custom code, or has no tokenizer.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    return read_bare_tokenizer(_provide(source, directory, None, weights=False), _label(source))


def examine(
    source: BaseModelSource,
    directory: Path,
    day: date = TEMPLATE_DATE,
    chat: ChatFormat = AS_IT_IS,
    services: Sequence[Service] = (),
) -> tuple[PreTrainedTokenizerBase, ModelFacts]:
    """Return the tokenizer of a base model, and facts about the model that do not need its weights.

    Args:
        source: Source of the model.
        directory: Directory for downloaded files; existing files are replaced.
        day: Date that the chat template sees as today (`model.template_date`).
        chat: The chat settings.
        services: The uses of vLLM in the run.

    Raises:
        DataError: See `materialize_tokenizer`; or a later stage cannot use the model (see `examine_model`).
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    path, label = _provide(source, directory, chat, weights=False), _label(source)
    tokenizer = read_tokenizer(path, label, day)
    return tokenizer, examine_model(path, tokenizer, label, services, _stored(source))


def usable_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> torch.Tensor:
    """Return which rows of an embedding matrix may be mixed: those of ordinary text tokens.

    Special tokens, added tokens (such as `</think>`), placeholders and rows without a token are excluded.

    Args:
        tokenizer: Tokenizer of the model.
        vocabulary: V, the number of rows of the embedding matrix.

    Returns:
        Mask, bool `[V]`.
    """
    added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    usable = torch.zeros(vocabulary, dtype=torch.bool)
    for token, index in tokenizer.get_vocab().items():
        if index < vocabulary and index not in added and not _PLACEHOLDER.fullmatch(token):
            usable[index] = True
    return usable


def _provide(source: BaseModelSource, directory: Path, chat: ChatFormat | None, *, weights: bool) -> Path:
    path = _files(source, directory, weights=weights)
    if chat is None:
        return path
    return write_chat_format(
        chat.chat_format(), path, directory.with_name(f"{directory.name}_with_chats"), _label(source)
    )


def _files(source: BaseModelSource, directory: Path, *, weights: bool) -> Path:
    if isinstance(source, CopiedModel):
        return hub_model.fetch(source, directory, weights=weights)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if isinstance(source, InitializedModel):
        initialized.write(source, directory, weights=weights)
    elif isinstance(source, RegisteredModel):
        registered.fetch(source, directory, weights=weights)
    else:
        packaged.write(source, directory, weights=weights)
    return directory


def _stored(source: BaseModelSource) -> dict[str, tuple[int, ...]] | None:
    """Return tensor shapes by name if the model is in a local directory with weights, otherwise None."""
    if not isinstance(source, CopiedModel) or is_bucket(source.location) or not is_copy(source):
        return None
    return tensor_shapes(local_directory(source.location, source.named), _label(source)) or None


def _label(source: BaseModelSource) -> str:
    if isinstance(source, InitializedModel):
        return f"model {source.kind!r}"
    if isinstance(source, RegisteredModel):
        return f"model {source.name!r} version {source.version}"
    return f"model {(source.package if isinstance(source, PackagedModel) else source.location)!r}"
