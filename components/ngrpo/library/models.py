"""Where the files of a model are, given as TRL and vLLM are given it: a directory, or a name on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import snapshot_download

from ngrpo.data.copies import DESCRIPTION, WEIGHTS
from ngrpo.data.locations import explained


def model_files(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the directory with the files of a model: the one that is named, or the hub's cache.

    Args:
        model: A directory, or a name on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        DataError: There is no such directory, and the hub has no such model or cannot be reached.
    """
    if Path(model).is_dir():
        return Path(model)
    with explained(
        f"model {str(model)!r}: no such directory, and it cannot be fetched from the hub", "check the path or the name"
    ):
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=[*DESCRIPTION, *WEIGHTS]))
