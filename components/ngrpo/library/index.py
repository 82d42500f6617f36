"""The neighbor index with its tokens: built from a model in one call, and asked by text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.data.embedding import read_embedding
from ngrpo.data.locations import explained
from ngrpo.data.model_directory import read_bare_tokenizer
from ngrpo.data.models import usable_tokens
from ngrpo.errors import DataError
from ngrpo.library.models import model_files
from ngrpo.library.settings import read_settings
from ngrpo.neighbors import index


class Neighbor(NamedTuple):
    """A neighbor of a token: its text, and how similar it is."""

    token: str
    similarity: float


@dataclass(frozen=True)
class NeighborIndex(index.NeighborIndex):
    """Nearest tokens of every token of a model.

    Attributes:
        tokenizer: The tokenizer of the model; none where the index was built from tensors or saved without one.
    """

    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def from_model(
        cls,
        model: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        metric: str = "cosine",
        candidates: int = 32,
        block_rows: int = 2048,
        revision: str | None = None,
    ) -> Self:
        """Build the index of a model's input embeddings.

        Args:
            model: A directory, a name on the hub, or a model in memory.
            tokenizer: Its tokenizer; by default the one that lies beside the model.
            metric: `cosine`, `dot`, `l2` or `l1`.
            candidates: Neighbors kept for each token.
            block_rows: Edge of the square tiles of similarities held at a time.
            revision: Branch, tag or commit on the hub.

        Raises:
            ConfigError: An argument is impossible.
            DataError: The model cannot be found or read, or has too few tokens.
        """
        values = {"metric": metric, "candidates": candidates, "block_rows": block_rows, "k": 1}
        settings = read_settings("NeighborIndex.from_model", values).neighbors
        if isinstance(model, PreTrainedModel):
            embedding = model.get_input_embeddings().weight.detach()
            tokenizer = tokenizer or _tokenizer_of(model)
        else:
            files = model_files(model, revision)
            embedding = read_embedding(files)
            tokenizer = tokenizer or read_bare_tokenizer(files, f"model {str(model)!r}")
        built = index.NeighborIndex.build(
            embedding, usable_tokens(tokenizer, len(embedding)), **settings.model_dump(exclude_unset=False)
        )
        return cls(**vars(built), tokenizer=tokenizer)

    def neighbors_of(self, token: str, count: int = 5) -> list[Neighbor]:
        """Return the nearest neighbors of a token, nearest first.

        Args:
            token: Its text, with the space before it if it has one: `" cat"`.
            count: How many; at most `candidates`.

        Raises:
            DataError: The text is not one token, or the token has no neighbors, or the index has no tokenizer.
        """
        if self.tokenizer is None:
            raise DataError("this index has no tokenizer: build it with NeighborIndex.from_model")
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            pieces = ", ".join(repr(self.tokenizer.decode([piece])) for piece in ids)
            raise DataError(f"token {token!r}: not one token of this model but {len(ids)} ({pieces}); name one")
        if not self.eligible[ids[0]]:
            raise DataError(f"token {token!r}: special, added and unused tokens have no neighbors; name another")
        nearest, similarities = self.neighbors[ids[0], :count].tolist(), self.similarity[ids[0], :count].tolist()
        texts = [self.tokenizer.decode([neighbor]) for neighbor in nearest]
        return [Neighbor(*pair) for pair in zip(texts, similarities, strict=True)]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the index into a directory, with the tokenizer if there is one.

        Raises:
            DataError: There is no room, or the directory cannot be written.
        """
        super().save(Path(directory))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. The tensors are mapped into memory, not copied.

        Raises:
            DataError: A file is missing or is not as it was written.
        """
        place = Path(directory)
        loaded = index.NeighborIndex.load(place)
        beside = (place / "tokenizer_config.json").is_file()
        tokenizer = read_bare_tokenizer(place, f"neighbor index in {place}") if beside else None
        return cls(**vars(loaded), tokenizer=tokenizer)


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    with explained(
        f"model {model.name_or_path!r}: its tokenizer cannot be loaded", "pass tokenizer=, the model's tokenizer"
    ):
        tokenizer: Any = AutoTokenizer.from_pretrained(model.name_or_path)
    return tokenizer
