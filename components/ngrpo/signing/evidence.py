"""The signatures kept with a model, and what they are checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.errors import DataError
from ngrpo.storage.digest import file_digests
from ngrpo.tracking.model_registry import MODEL_CARD, MODEL_FOLDER

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.tracking.promotions import Promotions

SIGNATURE = "model.sig"
"""The signature over the files."""
STATEMENT = "promotion.intoto.json"
"""The statement on the promotion."""
SIGNER = "signer.pub"
"""The public key of both. It names the signer but proves nothing: whoever can replace the signatures can replace it too."""
SEAL = (SIGNATURE, STATEMENT, SIGNER)
"""The files that signing adds beside those of a model."""
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evidence:
    """The signatures of a model and the records they cover; None for what is missing."""

    label: str
    """Name of the model in messages."""
    signature: bytes | None = None
    statement: bytes | None = None
    signer: bytes | None = None
    evaluation: bytes | None = None
    """The `evaluation.json` in the registry that the model is judged by."""
    decisions: Sequence[Mapping[str, Any]] | None = None
    """The decisions on this version, oldest first (`ngrpo.tracking.promotions.Entry`); None without a registry."""
    version: str | None = None
    """Its version in the registry; None without a registry."""

    @property
    def signed(self) -> bool:
        """Whether any part of a signature is there."""
        return any(part is not None for part in (self.signature, self.statement, self.signer))


def registered_evidence(promotions: Promotions, version: ModelVersion) -> Evidence:
    """Return the signatures and records that the registry keeps with a version.

    Raises:
        TrackingError: The registry cannot be reached.
        StoreError: The object store with the history of promotions cannot be reached.
    """
    registry, number = promotions.registry, str(version.version)
    signature, statement, signer = (registry.file(version, name) for name in SEAL)
    return Evidence(
        label=f"model {registry.name}: version {number}",
        signature=signature,
        statement=statement,
        signer=signer,
        evaluation=registry.evaluation(version),
        decisions=[entry for entry in promotions.history() if entry["version"] == number],
        version=number,
    )


def evidence_in(directory: Path) -> tuple[dict[str, str], Evidence]:
    """Return the files of a model in a directory, and the signatures and records there.

    The directory has the layout of the registry, with the model in `model/` and the signatures beside that folder, or the layout of
    `ngrpo export`, with all files side by side. In the latter, signatures, `evaluation.json` and the model card do not count as files of
    the model.

    Raises:
        DataError: There is no such directory, no model in it, or it cannot be read.
    """
    try:
        model = directory / MODEL_FOLDER
        apart = model.is_dir()
        place = model if apart else directory
        if not place.is_dir() or not any(place.glob("*.safetensors")):
            raise DataError(
                f"{directory}: no model there (*.safetensors); name a directory with one, or a version of the registry"
            )
        beside = {name: _bytes(directory / name) for name in (*SEAL, EVALUATION_FILE)}
        signature, statement, signer, evaluation = beside.values()
        evidence = Evidence(str(directory), signature, statement, signer, evaluation)
        if evidence.signed:
            _require_files(place)
        files = file_digests(place) if evidence.signed else {}
    except OSError as error:
        raise DataError(
            f"{error.filename or directory}: cannot be read ({error.strerror}); name another directory"
        ) from error
    if not apart:
        files = {name: digest for name, digest in files.items() if name not in (*beside, MODEL_CARD)}
    return files, evidence


def _require_files(place: Path) -> None:
    """Refuse what is neither a file nor a directory, and links to directories: no signature covers what is behind them.

    Raises:
        DataError: There is such a thing.
    """
    for path in sorted(place.rglob("*")):
        if not path.is_file() and (path.is_symlink() or not path.is_dir()):
            raise DataError(
                f"{path}: neither a file nor a directory of its own, so that no signature covers it; remove it, or put a copy in its place"
            )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
