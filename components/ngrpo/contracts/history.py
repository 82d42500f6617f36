"""`log_history.json` of a training: what its trainer logged, one entry a log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ngrpo.contracts.layout import read_bytes
from ngrpo.storage.state import DamagedStateError

Entry = dict[str, int | float | str | None]
"""`step`, and the metrics that were logged at that step."""

_FILE = "log_history.json"


def write_history(artifact: Path, history: Sequence[Mapping[str, object]]) -> None:
    """Write what a trainer logged (`trainer.state.log_history`) into an artifact."""
    (artifact / _FILE).write_text(json.dumps(list(history)), encoding="utf-8")


def read_history(artifact: Path, cure: str) -> list[Entry]:
    """Return what a trainer logged. Numbers may be NaN or infinite, which other files of state may not hold.

    Raises:
        StoreError: The file cannot be read, or is none of that kind.
    """
    path = artifact / _FILE
    try:
        history = TypeAdapter(list[Entry]).validate_python(json.loads(read_bytes(path, cure)))
    except ValidationError as error:
        raise DamagedStateError(f"{path}: damaged: it is no list of logged values; {cure}") from error
    except ValueError as error:
        raise DamagedStateError(f"{path}: damaged: it is not JSON ({error}); {cure}") from error
    if not all(isinstance(entry.get("step"), int | float) for entry in history):
        raise DamagedStateError(f"{path}: damaged: an entry without a step; {cure}")
    return history
