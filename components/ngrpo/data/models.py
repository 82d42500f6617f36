"""Base models as local directories that `from_pretrained` reads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ngrpo.config import BaseModelSource, HubModel, InitializedModel, PackagedModel, RegisteredModel
from ngrpo.data import hub_model, initialized, packaged, registered
from ngrpo.data.locations import reason
from ngrpo.data.weights import weights_problem
from ngrpo.errors import DataError

# Rows kept free for later use in vocabularies that do not list them as added tokens.
_PLACEHOLDER = re.compile(r"<\|.*\|>|\[unused\d+\]|<unused_?\d+>|<extra_id_\d+>|<\|?reserved.*>|\[PAD\d*\]")


def materialize(source: BaseModelSource, directory: Path) -> Path:
    """Return a directory with weights, configuration, tokenizer and chat template of a base model.

    The same source gives the same bytes.

    Args:
        source: Where the model comes from.
        directory: Where to write it; what is there is replaced.

    Returns:
        `directory`, or the place where the model already is: a local directory, or the hub's cache. Do not write there.

    Raises:
        DataError: The model cannot be reached, or lacks weights, tokenizer or chat template, or they do not fit together.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    path = _provide(source, directory, weights=True)
    name = _name(source)
    _check_weights(path, name)
    tokenizer = _load_tokenizer(path, name)
    try:
        rows = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        raise DataError(f"model {name!r}: {path}/config.json cannot be used: {reason(error)}; copy it again") from error
    if len(tokenizer) > rows:
        raise DataError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} tokens but its embedding matrix {rows} rows; "
            "use the tokenizer the model was trained with, or resize the model's embeddings"
        )
    return path


def materialize_tokenizer(source: BaseModelSource, directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, without its weights.

    Args:
        source: Where the model comes from.
        directory: Where to write the tokenizer; what is there is replaced.

    Raises:
        DataError: The model cannot be reached, or has no tokenizer or no chat template.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    return _load_tokenizer(_provide(source, directory, weights=False), _name(source))


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


def _provide(source: BaseModelSource, directory: Path, *, weights: bool) -> Path:
    if isinstance(source, HubModel):
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


def _name(source: BaseModelSource) -> str:
    if isinstance(source, InitializedModel):
        return source.kind
    if isinstance(source, RegisteredModel):
        return f"{source.name} version {source.version}"
    return source.package if isinstance(source, PackagedModel) else source.id


def _check_weights(path: Path, name: str) -> None:
    if not (path / "config.json").is_file():
        raise DataError(
            f"model {name!r}: no config.json in {path}; the directory must be one that save_pretrained wrote"
        )
    files = {"model.safetensors"}
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(file for file in files if not (path / file).is_file())
    if missing:
        raise DataError(
            f"model {name!r}: no weights: {', '.join(missing)} missing in {path}; save the model with "
            "save_pretrained (safetensors)"
        )
    problem = weights_problem(path)
    if problem is not None:
        raise DataError(
            f"model {name!r}: its weights in {path} cannot be used: {problem}; copy or save the model again"
        )


def _load_tokenizer(path: Path, name: str) -> PreTrainedTokenizerBase:
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise DataError(f"model {name!r}: no tokenizer in {path}; save it there with save_pretrained")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"model {name!r}: its tokenizer in {path} cannot be used: {reason(error)}; copy it again"
        ) from error
    if tokenizer.chat_template is None:
        raise DataError(
            f"model {name!r}: its tokenizer has no chat template; use a chat model or add chat_template.jinja"
        )
    return tokenizer
