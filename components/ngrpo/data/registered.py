"""Models of the registry, from the object storage where MLflow keeps their files."""

from __future__ import annotations

from pathlib import Path

from ngrpo.config import RegisteredModel
from ngrpo.data.locations import download
from ngrpo.errors import DataError
from ngrpo.storage.digest import model_digest


def fetch(source: RegisteredModel, directory: Path, *, weights: bool) -> None:
    """Copy the files of a version into a directory.

    Args:
        source: The version.
        directory: Empty directory to fill.
        weights: Fetch the weights too, and make sure that all files are those that were registered.

    Raises:
        DataError: The files are gone, or are others than were registered.
        StoreError: The object store cannot be reached or refuses the credentials.
    """
    download(source.id, directory, lambda key: weights or not key.endswith(".safetensors"))
    if weights and model_digest(directory) != source.digest:
        raise DataError(
            f"model {source.name} version {source.version}: the files in {source.id} are not those that were registered (digest "
            f"{source.digest}): restore them, or start from another version"
        )
