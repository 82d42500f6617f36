"""Models of the Hugging Face hub: from the hub, from a local copy, or from a copy in object storage."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download

from ngrpo.config import HubModel
from ngrpo.data.locations import download, explained, is_bucket, is_local, local_directory

_DESCRIPTION = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_WEIGHTS = ("*.safetensors",)


def fetch(source: HubModel, directory: Path, *, weights: bool) -> Path:
    """Return a local directory with the files of a model.

    Args:
        source: The model.
        directory: Where a copy from object storage is written.
        weights: Fetch the weights as well as configuration and tokenizer.

    Raises:
        DataError: The model cannot be reached.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    patterns = _DESCRIPTION + (_WEIGHTS if weights else ())
    if is_bucket(source.id):
        download(
            source.id, directory, lambda key: "/" not in key and any(fnmatch(key, pattern) for pattern in patterns)
        )
        return directory
    if is_local(source.id):
        return local_directory(source.id)
    with explained(
        f"model {source.id!r} (revision {source.revision}) cannot be fetched",
        "check id and revision, or set id to a local copy or an s3:// copy if the hub is out of reach",
    ):
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=list(patterns)))
