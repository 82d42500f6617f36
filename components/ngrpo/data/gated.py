"""Benchmarks that the hub gives to those alone who have accepted their terms.

Whether one is measured is part of the configuration, not of the place where a stage runs: the keys of results stay true.
"""

from __future__ import annotations

from collections.abc import Sequence

from ngrpo.config import HubSource, RunConfig, validate
from ngrpo.data.copies import is_copy


def gated_benchmarks(config: RunConfig) -> list[str]:
    """Return the names of the benchmarks that can only be read with a token of the hub; of a copy nobody asks for one."""
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
