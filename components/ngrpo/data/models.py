"""Base models as local directories that `from_pretrained` reads."""

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

# Rows kept free for later use in vocabularies that do not list them as added tokens.
_PLACEHOLDER = re.compile(r"<\|.*\|>|\[unused\d+\]|<unused_?\d+>|<extra_id_\d+>|<\|?reserved.*>|\[PAD\d*\]")


AS_IT_IS = ChatFormat()
"""Nothing is set for the model's chats."""


def materialize(source: BaseModelSource, directory: Path, chat: ChatFormat | None = AS_IT_IS) -> Path:
    """Return a directory with weights, configuration, tokenizer and chat template of a base model.

    The same source gives the same bytes.

    Args:
        source: Where the model comes from.
        directory: Where to write it; what is there is replaced.
        chat: What is set for its chats; none where it need not be able to write any.

    Returns:
        `directory`; or one beside it, where something is set for chats; or the place where the model already is, the hub's cache. Do
        not write there.

    Raises:
        DataError: The model cannot be reached, brings code or pickles, or lacks weights, tokenizer or a chat template that can be
            used, or they do not fit together.
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
        source: Where the model comes from.
        directory: Where to write the tokenizer; what is there is replaced.
        day: The day that its chat template is told (`model.template_date`).
        chat: What is set for its chats.

    Raises:
        DataError: The model cannot be reached, brings code, or has no tokenizer or no chat template that can be used.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    return read_tokenizer(_provide(source, directory, chat, weights=False), _label(source), day)


def bare_tokenizer(source: BaseModelSource, directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, without its weights; it need not be able to write chats.

    Args:
        source: Where the model comes from.
        directory: Where to write the tokenizer; what is there is replaced.

    Raises:
        DataError: The model cannot be reached, brings code, or has no tokenizer.
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
    """Return the tokenizer of a base model, and what is known of the model without its weights.

    Args:
        source: Where the model comes from.
        directory: Where to write what is fetched; what is there is replaced.
        day: The day that its chat template is told (`model.template_date`).
        chat: What is set for its chats.
        services: Where vLLM is to serve it.

    Raises:
        DataError: See `materialize_tokenizer`; or a later stage could not use the model (see `examine_model`).
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    path, label = _provide(source, directory, chat, weights=False), _label(source)
    tokenizer = read_tokenizer(path, label, day)
    return tokenizer, examine_model(path, tokenizer, label, services, _stored(source))


def usable_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> torch.Tensor:
    """Say which rows of an embedding matrix may be mixed: ordinary tokens of text.

    Special tokens, added tokens (`</think>` is one), placeholders and rows without a token are left out.

    Args:
        tokenizer: Tokenizer of the model.
        vocabulary: V, rows of the embedding matrix.

    Returns:
        bool `[V]`.
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
    """Return the shapes of the tensors of a model in a directory of this machine; none of one from elsewhere, or without weights."""
    if not isinstance(source, CopiedModel) or is_bucket(source.location) or not is_copy(source):
        return None
    return tensor_shapes(local_directory(source.location, source.named), _label(source)) or None


def _label(source: BaseModelSource) -> str:
    if isinstance(source, InitializedModel):
        return f"model {source.kind!r}"
    if isinstance(source, RegisteredModel):
        return f"model {source.name!r} version {source.version}"
    return f"model {(source.package if isinstance(source, PackagedModel) else source.location)!r}"
