"""The settings of mixing as keyword arguments, validated like those of a preset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ngrpo.config import MixingConfig, NeighborsConfig, Section, validate
from ngrpo.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """How mixing is done, and the index it draws on."""

    mixing: MixingConfig
    neighbors: NeighborsConfig


def read_settings(owner: str, values: Mapping[str, Any], further: Iterable[str] = ()) -> Settings:
    """Validate the settings of mixing and of its index.

    Args:
        owner: What they are the arguments of, for the error.
        values: Fields of `MixingConfig` and of `NeighborsConfig`, by name.
        further: What else is wrong with the arguments, a line each.

    Raises:
        ConfigError: Something is wrong; a line for each argument.
    """
    problems = list(further)
    sections: list[Any] = []
    for section in (MixingConfig, NeighborsConfig):
        try:
            sections.append(_read(section, values))
        except ConfigError as error:
            # What settings do not agree on names them, behind the section, which is not an argument.
            problems += [line.removeprefix("configuration: ") for line in str(error).splitlines()]
    if not problems:
        mixing, neighbors = sections
        if mixing.neighbors_needed <= neighbors.candidates:
            return Settings(mixing, neighbors)
        problems.append(
            f"k={mixing.k} exceeds candidates={neighbors.candidates} plus the anchor: raise candidates to at least "
            f"{mixing.k - 1} or lower k"
        )
    raise ConfigError("\n".join(f"{owner}.{problem}" for problem in problems))


def _read(section: type[Section], values: Mapping[str, Any]) -> Section:
    return validate(section, {name: value for name, value in values.items() if name in section.model_fields})
