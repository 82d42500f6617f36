"""Checks of keys and signatures before anything runs: a key that cannot sign, and an unsigned base model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ngrpo.config import RegisteredModel, RunConfig
from ngrpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.tracking.model_registry import ModelRegistry


def require_key(config: RunConfig) -> None:
    """Refuse a run on this machine whose promotion could not sign, before it starts.

    Raises:
        ConfigError: The key that `signing.private_key` names cannot be used, or the signing library is missing.
    """
    if config.signing.private_key is not None:
        from ngrpo.signing.keys import private_key

        private_key(config.signing, os.environ.get)


def require_key_in_pods(config: RunConfig) -> None:
    """Refuse a run on a cluster whose promotion would lack the key.

    Raises:
        ConfigError: The key is a file of this machine, or pods lack the variable that holds it.
    """
    signing = config.signing
    if signing.private_key is None:
        return
    name = signing.key_variable
    if name is None:
        raise ConfigError(
            f"signing.private_key: {signing.private_key} is a file of this machine, which pods do not have: put it into a Kubernetes "
            "secret, name that in cluster.secrets.<secret>.NGRPO_SIGNING_KEY, and set signing.private_key to $NGRPO_SIGNING_KEY"
        )
    if not any(name in variables for variables in config.cluster.secrets.values()):
        raise ConfigError(
            f"signing.private_key: pods have no variable {name}: name the secret that holds the key in cluster.secrets.<secret>.{name}"
        )


def require_verified_base(config: RunConfig, store: str) -> None:
    """Refuse a registered base model that is not signed by `signing.public_key`, if that is set.

    No weights are read: it verifies that the digest in the settings was signed, and the stages compare every file with that digest.

    Args:
        config: The configuration, with the base model that the run starts from.
        store: Address of the artifact store, which keeps the history of promotions.

    Raises:
        ConfigError: The public key cannot be used.
        VerificationError: The version is unsigned, or a link is broken; the message names it.
        DataError: The version is gone, or the registry has no list of its files of that digest.
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    source = config.model.source
    if isinstance(source, RegisteredModel):
        require_verified_version(source.name, source.version, source.digest, config, store, "the base model")


def require_verified_version(name: str, number: int, digest: str, config: RunConfig, store: str, what: str) -> None:
    """Refuse a registered version that is not signed by `signing.public_key`, if that is set.

    Args:
        name: The registered model.
        number: The version.
        digest: Digest that its files must have.
        config: Configuration with the key.
        store: See `require_verified_base`.
        what: Role of the version, for the message.

    Raises:
        NGRPOError: See `require_verified_base`.
    """
    if config.signing.public_key is None:
        return
    from ngrpo.signing.evidence import registered_evidence
    from ngrpo.signing.keys import public_key, require_library
    from ngrpo.signing.verification import verify_model
    from ngrpo.storage.digest import digest_of
    from ngrpo.tracking.promotions import Promotions

    require_library("signing.public_key")
    key = public_key(config.signing.public_key, "signing.public_key")
    promotions = Promotions.in_store(store, name)
    version = promotions.registry.version(str(number))
    files = {} if version is None else _listed_files(promotions.registry, version)
    if version is None or digest_of(files) != digest:
        problem = "is gone" if version is None else f"has no list of files of the digest {digest}"
        raise DataError(
            f"model {name}: version {number}, {what}, {problem}, so its signature cannot be verified: restore it, or name another version"
        )
    verify_model(files, registered_evidence(promotions, version), key)


def _listed_files(registry: ModelRegistry, version: ModelVersion) -> dict[str, str]:
    """Return the sha256 of the model's files from the manifest of a version; none if that is missing or damaged."""
    from ngrpo.storage.manifest import MANIFEST, Manifest
    from ngrpo.storage.state import DamagedStateError
    from ngrpo.tracking.model_registry import MODEL_FOLDER

    data = registry.file(version, MANIFEST)
    try:
        files = {} if data is None else Manifest.from_bytes(data).files
    except DamagedStateError:
        return {}
    folder = f"{MODEL_FOLDER}/"
    return {name.removeprefix(folder): entry.sha256 for name, entry in files.items() if name.startswith(folder)}
