"""Low-rank adapters: what is trained in place of all weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ngrpo.config.sources import ONE, SEVERAL
from ngrpo.section import NonEmpty, Section, count, number

FROZEN = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"})
"""Names that the layers below and above a transformer have."""


def _all_or_some(value: Any) -> str | None:
    """Return the tag of a value: the word for all layers, or a list of names; None for anything else."""
    return SEVERAL if isinstance(value, list | tuple) else ONE if value == "all-linear" else None


_Targets = Annotated[
    Annotated[Literal["all-linear"], Tag(ONE)]
    | Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=100), Tag(SEVERAL)],
    Discriminator(
        _all_or_some,
        custom_error_type="neither",
        custom_error_message="write 'all-linear', or a list of names of linear layers, for example ['q_proj', 'v_proj']",
    ),
]


class LoRAConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) trained in place of all weights, as PEFT makes them.

    Base weights, including embeddings and
    output head, do not change, and so neither does the neighbor index.
    """

    rank: Annotated[int, count(1, 4096)] = 32
    """Rank of each adapter, r."""
    alpha: Annotated[float, number(above=0.0, most=1e6)] = 64.0
    """An adapter is scaled by `alpha / rank`."""
    targets: _Targets = "all-linear"
    """Linear layers that get an adapter: all but the output head, or those with these names, for example `["q_proj", "v_proj"]`."""

    @model_validator(mode="after")
    def _embeddings_stay(self) -> Self:
        frozen = (
            []
            if isinstance(self.targets, str)
            else [name for name in self.targets if name.rpartition(".")[2] in FROZEN]
        )
        if frozen:
            raise ValueError(
                f"targets={list(self.targets)} names {frozen[0]!r}: embeddings and output head are not adapted; name linear layers "
                "of the blocks, or 'all-linear'"
            )
        return self
