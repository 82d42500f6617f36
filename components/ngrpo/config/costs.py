"""Prices: the section `costs` of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ngrpo.section import Section, number

Price = Annotated[float, number(least=0.0, most=1_000_000.0)]


class CostsConfig(Section):
    """Prices of an hour. They only tell what a run cost: no stage's key depends on them."""

    gpu_hour: Price | None = None
    """Price of a GPU for an hour; none leaves GPUs without a price."""
    cpu_hour: Price | None = None
    """Price of an hour of processor time, that is of one busy core for an hour; none leaves processors without a price."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "EUR"
    """Currency of the prices, by its code of three letters (ISO 4217)."""
