"""`ngrpo neighbors`: the nearest neighbors of tokens of a model, in the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import NeighborsConfig, validate
from ngrpo.errors import ConfigError, DataError
from ngrpo_kfp.pipelines.cli.options import read_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def show_neighbors(model: str, words: Sequence[str], console: Console, *, count: int, metric: str) -> None:
    """Show the nearest neighbors of tokens in the embeddings of a model.

    Args:
        model: Directory of a model, or a preset, for its base model.
        words: The tokens as text.
        console: Where they are shown.
        count: Neighbors of each.
        metric: How similarity is measured.

    Raises:
        ConfigError: There is no such model or metric, or the count is impossible.
        DataError: A text is not one token, or a token has no neighbors.
    """
    from ngrpo.data.models import usable_tokens
    from ngrpo.neighbors.index import look_up

    try:
        settings = validate(NeighborsConfig, {"candidates": count, "metric": metric})
    except ConfigError as error:
        raise ConfigError(str(error).replace("candidates:", "--count:").replace("metric:", "--metric:")) from error
    with tempfile.TemporaryDirectory() as directory:
        embedding, tokenizer = _load(model, Path(directory))
        eligible = usable_tokens(tokenizer, len(embedding))
        tokens = [_token_id(text, tokenizer) for text in words]
        for text, token in zip(words, tokens, strict=True):
            if not eligible[token]:
                raise DataError(f"token {text!r}: special, added and unused tokens have no neighbors; name another")
        found, similarities = look_up(
            embedding,
            eligible,
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


def _load(model: str, directory: Path) -> tuple[Tensor, PreTrainedTokenizerBase]:
    from ngrpo.data.embedding import load_embedding, read_embedding
    from ngrpo.data.model_directory import read_bare_tokenizer

    if Path(model).is_dir():
        return read_embedding(Path(model)), read_bare_tokenizer(Path(model), f"model {model}")
    try:
        config = read_config(model)
    except ConfigError as error:
        raise ConfigError(f"MODEL {model}: no such directory, and no preset either ({error})") from error
    return load_embedding(config.model.source, directory)


def _token_id(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        pieces = ", ".join(repr(tokenizer.decode([piece])) for piece in ids)
        raise DataError(f"token {text!r}: not one token of this model but {len(ids)} ({pieces}); name them one by one")
    return int(ids[0])
