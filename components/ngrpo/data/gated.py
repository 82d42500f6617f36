"""Gated benchmarks: data sets that the hub serves only to users who have accepted their terms.

Whether a gated benchmark is evaluated is decided in the configuration, not where a stage runs, so keys describe the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from ngrpo.config import HubSource, RunConfig, validate
from ngrpo.data.copies import is_copy


def gated_benchmarks(config: RunConfig) -> list[str]:
    """Return the names of the benchmarks that need a hub token; copies do not need one."""
    return [
        name
        for name, source in config.data.benchmarks.items()
        if isinstance(source, HubSource) and source.gated and not is_copy(source)
    ]


def without_benchmarks(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """Return a configuration without some of its benchmarks.

    Raises:
        ConfigError: Another setting needs one of them, or none is left.
    """
    tree = config.model_dump(mode="json")
    for name in names:
        del tree["data"]["benchmarks"][name]
    return validate(RunConfig, tree)
