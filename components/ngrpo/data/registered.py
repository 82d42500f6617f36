"""Fetch models of the MLflow registry from object storage."""

from __future__ import annotations

from pathlib import Path

from ngrpo.config import RegisteredModel
from ngrpo.data.locations import download
from ngrpo.errors import DataError
from ngrpo.storage.digest import digest_of, file_digests
from ngrpo.storage.manifest import MANIFEST, Manifest
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError


def fetch(source: RegisteredModel, directory: Path, *, weights: bool) -> None:
    """Download the files of a registered version and verify their digests.

    The pinned digest covers the file list of the manifest beside the model, so a subset of the files can be verified without the rest.

    Args:
        source: The version.
        directory: Empty directory to download to.
        weights: Fetch the weights as well as configuration and tokenizer.

    Raises:
        DataError: The files are missing, or differ from those that were registered.
        StoreError: The object store cannot be reached or refuses the credentials.
    """
    download(source.id, directory, lambda key: weights or not key.endswith(".safetensors"))
    registered = _registered(source)
    found = file_digests(directory)
    proved = found == registered if weights else found.items() <= registered.items()
    if digest_of(registered) != source.digest or not proved:
        raise DataError(
            f"model {source.name} version {source.version}: the files in {source.id} are not those that were registered (digest "
            f"{source.digest}): restore them, or start from another version"
        )


def _registered(source: RegisteredModel) -> dict[str, str]:
    """Return the sha256 of each model file from the version's manifest; empty if the manifest is missing or damaged."""
    place, _, folder = source.id.rstrip("/").rpartition("/")
    data = ObjectStore(place).get_bytes(MANIFEST)
    try:
        files = {} if data is None else Manifest.from_bytes(data, f"{place}/{MANIFEST}").files
    except DamagedStateError:
        return {}
    return {name.partition("/")[2]: entry.sha256 for name, entry in files.items() if name.startswith(f"{folder}/")}
