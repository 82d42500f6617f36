"""Checks of keys and signatures before anything runs: a key that cannot sign, and an unsigned base model."""

from __future__ import annotations

import os

from ngrpo.config import RegisteredModel, RunConfig
from ngrpo.errors import ConfigError


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
    if isinstance(source, RegisteredModel) and config.signing.public_key is not None:
        from ngrpo.signing.required import require_verified_version

        require_verified_version(source, config.signing, store, "the base model")
