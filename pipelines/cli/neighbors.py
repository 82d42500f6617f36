"""`ngrpo neighbors`: the nearest neighbors of tokens of a model, in the terminal."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import InitializedModel, NeighborsConfig, PackagedModel, validate
from ngrpo.errors import ConfigError, DataError
from ngrpo.report.phases import phase, standard_error
from ngrpo_kfp.pipelines.cli.options import read_config
from ngrpo_kfp.pipelines.local.workspace import Workspace, written

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ngrpo.config import BaseModelSource

_CONVERTED = "converted_models"
"""Folder of the workspace's cache with tokenizers and input embeddings extracted from packages."""
_MATRIX = "embedding.safetensors"
_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of tokenizers that transformers reads from `tokenizer.json` as they are."""
_EXAMPLES = 8
"""How many tokens a refusal names, at least."""


def show_neighbors(
    model: str, words: Sequence[str], workspace: Workspace, console: Console, *, count: int, metric: str
) -> None:
    """Show the nearest neighbors of tokens in the embeddings of a model.

    Args:
        model: Directory of a model, or a preset, which stands for its base model.
        words: The tokens as text.
        workspace: Where converted models are cached.
        console: Where they are shown.
        count: Neighbors of each.
        metric: How similarity is measured.

    Raises:
        ConfigError: There is no such model or metric, or the count is impossible.
        DataError: A text is not one token, or a token has no neighbors.
    """
    try:
        settings = validate(NeighborsConfig, {"candidates": count, "metric": metric})
    except ConfigError as error:
        raise ConfigError(str(error).replace("candidates:", "--count:").replace("metric:", "--metric:")) from error
    source = _source(model)
    _refuse_early(words, source, _kept(source, workspace))
    with (
        phase(standard_error(), "reading the tokenizer") as shown,
        tempfile.TemporaryDirectory() as directory,
    ):
        # These take seconds to import.
        from ngrpo.data.models import usable_tokens
        from ngrpo.neighbors.index import look_up

        kept = _kept(source, workspace)
        tokenizer = _tokenizer(source, kept, Path(directory))
        tokens = _token_ids(words, tokenizer)  # before the weights, which may have to be fetched or converted
        shown.now("reading the embeddings, looking for neighbors")
        embedding = _embedding(source, kept, Path(directory))
        found, similarities = look_up(
            embedding,
            usable_tokens(tokenizer, len(embedding)),
            tokens,
            count=settings.candidates,
            block_rows=settings.block_rows,
            metric=settings.metric,
        )
    table = Table("token", f"nearest by {settings.metric}", box=None)
    for token, neighbors, values in zip(tokens, found.tolist(), similarities.tolist(), strict=True):
        sets = [
            f"{escape(repr(tokenizer.decode([neighbor])))} [dim]{value:.3f}[/dim]"
            for neighbor, value in zip(neighbors, values, strict=True)
        ]
        table.add_row(escape(repr(tokenizer.decode([token]))), "  ".join(sets))
    console.print(table)


def _source(model: str) -> Path | BaseModelSource:
    if Path(model).is_dir():
        return Path(model)
    try:
        return read_config(model).model.source
    except ConfigError as error:
        raise ConfigError(f"MODEL {model}: no such directory, and no preset either ({error})") from error


def _kept(source: Path | BaseModelSource, workspace: Workspace) -> Path | None:
    """Return where tokenizer and matrix of a packaged model are cached, because converting takes a while; None for other models."""
    if not isinstance(source, PackagedModel):
        return None
    try:
        version = metadata.version(source.package)
    except metadata.PackageNotFoundError:
        return None  # reading the source reports the problem
    content = json.dumps([source.model_dump(mode="json"), version]).encode()
    kept = workspace.cache / _CONVERTED / hashlib.sha256(content).hexdigest()
    with workspace.private(), written(kept):
        kept.mkdir(parents=True, exist_ok=True)
    return kept


def _tokenizer(source: Path | BaseModelSource, kept: Path | None, directory: Path) -> PreTrainedTokenizerBase:
    from ngrpo.data.model_directory import read_bare_tokenizer
    from ngrpo.data.models import bare_tokenizer

    if isinstance(source, Path):
        return read_bare_tokenizer(source, f"model {source}")
    if kept is None:
        return bare_tokenizer(source, directory / "tokenizer")
    if not (kept / "tokenizer").exists():
        bare_tokenizer(source, kept / "tokenizer.partial")
        with written(kept):
            (kept / "tokenizer.partial").rename(kept / "tokenizer")
    return read_bare_tokenizer(kept / "tokenizer", f"model {kept}")


def _token_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    from ngrpo.data.models import usable_tokens

    tokens = [_token_id(text, tokenizer) for text in words]
    eligible = usable_tokens(tokenizer, max(tokens) + 1)
    for text, token in zip(words, tokens, strict=True):
        if not eligible[token]:
            raise _without_neighbors(text)
    return tokens


def _embedding(source: Path | BaseModelSource, kept: Path | None, directory: Path) -> Tensor:
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    from ngrpo.data.embedding import load_embedding, read_embedding

    if isinstance(source, Path):
        return read_embedding(source)
    matrix = None if kept is None else kept / _MATRIX
    if matrix is None or not matrix.exists():
        logging.disable_progress_bar()
        print("reading the weights, which takes a while the first time", file=sys.stderr)
        embedding, _ = load_embedding(source, directory / "model")
        if matrix is None:
            return embedding
        with written(matrix):
            save_file({_MATRIX: embedding.contiguous()}, matrix.with_suffix(".partial"))
            matrix.with_suffix(".partial").rename(matrix)
    return load_file(matrix)[_MATRIX]


def _token_id(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return _single(text, tokenizer.encode(text, add_special_tokens=False), tokenizer.decode)


def _single(text: str, ids: Sequence[int], decode: Callable[[list[int]], str]) -> int:
    """Return the token of a text that is one token, and refuse others."""
    if len(ids) != 1:
        pieces = ", ".join(repr(decode([piece])) for piece in ids)
        raise DataError(f"token {text!r}: not one token of this model but {len(ids)} ({pieces}); name them one by one")
    return int(ids[0])


def _refuse_early(words: Sequence[str], source: Path | BaseModelSource, kept: Path | None) -> None:
    """Refuse what is no token without transformers, whose import takes seconds. Whatever passes is checked again with its tokenizer."""
    if isinstance(source, InitializedModel):
        from ngrpo.data.vocabularies import VOCABULARIES

        known = VOCABULARIES[source.vocabulary]
        for text in words:
            if text not in known:
                some = ", ".join(map(repr, known[:: max(1, len(known) // _EXAMPLES)]))
                raise DataError(
                    f"token {text!r}: not one of the {len(known)} tokens of this model; name one, such as {some}"
                )
        return
    directory = source if isinstance(source, Path) else None if kept is None else kept / "tokenizer"
    tokenizer = None if directory is None else _plain_tokenizer(directory)
    if tokenizer is None:
        return
    added = tokenizer.get_added_tokens_decoder()
    for text in words:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if _single(text, ids, partial(tokenizer.decode, skip_special_tokens=False)) in added:
            raise _without_neighbors(text)


def _plain_tokenizer(directory: Path) -> Tokenizer | None:
    """Return the tokenizer of a directory where transformers takes it from `tokenizer.json` as it is; None where it builds another."""
    from tokenizers import Tokenizer

    try:
        named = json.loads((directory / "tokenizer_config.json").read_bytes())["tokenizer_class"]
        if named not in _PLAIN:
            return None
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception:  # of which tokenizers has no kinds; reading it with transformers says what is wrong
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_neighbors(text: str) -> DataError:
    return DataError(f"token {text!r}: special, added and unused tokens have no neighbors; name another")
