"""Refuse unsigned models: a base model, or a version that is to be served."""

from __future__ import annotations

from mlflow.entities.model_registry import ModelVersion

from ngrpo.config import RegisteredModel
from ngrpo.config.signing import SigningConfig
from ngrpo.errors import DataError
from ngrpo.signing.evidence import registered_evidence
from ngrpo.signing.keys import public_key, require_library
from ngrpo.signing.verification import verify_model
from ngrpo.storage.digest import digest_of
from ngrpo.storage.manifest import MANIFEST, Manifest
from ngrpo.storage.state import DamagedStateError
from ngrpo.tracking.model_registry import MODEL_FOLDER, ModelRegistry
from ngrpo.tracking.promotions import Promotions


def require_verified_version(model: RegisteredModel, signing: SigningConfig, store: str, what: str) -> None:
    """Refuse a registered version that is not signed by `signing.public_key`, if that is set.

    Args:
        model: The version, with the digest that its files are checked against.
        signing: Names the key.
        store: Address of the artifact store, which keeps the history of promotions.
        what: What the version is used for, for the message.

    Raises:
        ConfigError: The public key cannot be used.
        VerificationError: The version is unsigned, or a link is broken; the message names it.
        DataError: The version is gone, or the registry has no list of its files of that digest.
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    if signing.public_key is None:
        return
    require_library("signing.public_key")
    key = public_key(signing.public_key, "signing.public_key")
    promotions = Promotions.in_store(store, model.name)
    version = promotions.registry.version(str(model.version))
    files = {} if version is None else _listed_files(promotions.registry, version)
    if version is None or digest_of(files) != model.digest:
        problem = "is gone" if version is None else f"has no list of files of the digest {model.digest}"
        raise DataError(
            f"model {model.name}: version {model.version}, {what}, {problem}, so its signature cannot be verified: restore it, or name "
            "another version"
        )
    verify_model(files, registered_evidence(promotions, version), key)


def _listed_files(registry: ModelRegistry, version: ModelVersion) -> dict[str, str]:
    """Return the sha256 of the model's files from the manifest of a version; None if that is gone or damaged."""
    data = registry.file(version, MANIFEST)
    try:
        files = {} if data is None else Manifest.from_bytes(data).files
    except DamagedStateError:
        return {}
    folder = f"{MODEL_FOLDER}/"
    return {name.removeprefix(folder): entry.sha256 for name, entry in files.items() if name.startswith(folder)}
