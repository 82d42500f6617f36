"""Fetch models from the Hugging Face hub, from a local directory, or from object storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

from ngrpo.config import CopiedModel, DirectoryModel
from ngrpo.data.copies import DESCRIPTION, WEIGHTS, is_copy, is_read, planned, require_planned
from ngrpo.data.locations import download, explained, is_bucket, local_directory
from ngrpo.data.model_files import require_no_code
from ngrpo.errors import DataError


def fetch(source: CopiedModel, directory: Path, *, weights: bool) -> Path:
    """Return a local directory with the files of a model.

    Args:
        source: The model.
        directory: Receives the files of a copy in object storage, or links to the files of a local directory or of the hub's cache.
        weights: Fetch the weights as well as configuration and tokenizer.

    Raises:
        DataError: The model cannot be reached, or is a copy that changed after the run was planned.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    if is_bucket(source.location):
        try:
            with planned(source):
                download(source.location, directory, is_read(source, weights=weights), named=source.named)
        except DataError:
            _remove(directory, is_read(source))  # a retry would keep files that are already there
            raise
        return directory
    if isinstance(source, DirectoryModel) or is_copy(source):
        require_planned(source)
        place = local_directory(source.location, source.named)
        require_no_code(place, f"model {source.location!r}")
        _link(place, directory, is_read(source, weights=weights))
        return directory
    with explained(
        f"model {source.id!r} (revision {source.revision}) cannot be fetched",
        "check id and revision, or set id to a local copy or an s3:// copy if the hub is out of reach",
    ):
        patterns = DESCRIPTION + (WEIGHTS if weights else ())
        place = Path(snapshot_download(source.id, revision=source.revision, allow_patterns=list(patterns)))
    # Other programs share the hub's cache and may have downloaded more files of the repository.
    _link(place, directory, is_read(source, weights=weights))
    return directory


def _link(place: Path, directory: Path, wanted: Callable[[str], bool]) -> None:
    """Link the selected files of a local copy into a directory, so that files outside its digest are never read."""
    directory.mkdir(parents=True, exist_ok=True)
    _remove(directory, lambda name: (directory / name).is_symlink())
    for path in sorted(place.iterdir()):
        if wanted(path.name) and path.is_file():
            (directory / path.name).symlink_to(path.absolute())


def _remove(directory: Path, unwanted: Callable[[str], bool]) -> None:
    for path in [*directory.iterdir()] if directory.is_dir() else []:
        if unwanted(path.name):
            path.unlink()
