"""`metrics.json` of every stage: numbers by name, which are tracked as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ngrpo.contracts.layout import read_bytes, write_json
from ngrpo.storage.state import parse_state

_FILE = "metrics.json"


def write_metrics(artifact: Path, metrics: Mapping[str, float]) -> None:
    """Write the metrics of a stage into its artifact."""
    write_json(artifact / _FILE, metrics)


def read_metrics(artifact: Path, cure: str = "run the pipeline again") -> dict[str, int | float]:
    """Return the metrics of an artifact.

    Raises:
        StoreError: There are none, or the file is damaged.
    """
    path = artifact / _FILE
    return parse_state(read_bytes(path, cure), dict[str, int | float], where=path, cure=cure)
