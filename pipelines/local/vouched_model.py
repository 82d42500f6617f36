"""Signatures of a named model before it is served or exported: verified if a key is required, and passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngrpo.config.signing import SigningConfig
from ngrpo.signing.keys import public_key, require_library
from ngrpo_kfp.pipelines.local.named_model import NamedModel
from ngrpo_kfp.pipelines.local.services import Services

if TYPE_CHECKING:
    from ngrpo.signing.evidence import Evidence


def require_verified(found: NamedModel, signing: SigningConfig, around: Services) -> None:
    """Refuse a model that is not signed by `signing.public_key`, if that is set.

    Args:
        found: The model.
        signing: The settings.
        around: Object storage and tracking, open.

    Raises:
        ConfigError: The public key cannot be used.
        VerificationError: The model is unsigned, or a link is broken; the message names it.
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    if signing.public_key is None:
        return
    require_library("signing.public_key")
    from ngrpo.signing.verification import verify_model

    verify_model(found.directory, _evidence(found, around), public_key(signing.public_key, "signing.public_key"))


def seal_of(found: NamedModel, around: Services) -> dict[str, bytes]:
    """Return the signatures of a model and the evaluation that they cover, by file name; nothing if it is unsigned.

    `ngrpo verify DIR` finds these files beside those of the model.

    Raises:
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    from ngrpo.signing.evidence import EVALUATION_FILE, SEAL

    evidence = _evidence(found, around)
    if not evidence.signed:
        return {}
    parts = (evidence.signature, evidence.statement, evidence.signer, evidence.evaluation)
    return {name: data for name, data in zip((*SEAL, EVALUATION_FILE), parts, strict=True) if data is not None}


def _evidence(found: NamedModel, around: Services) -> Evidence:
    from ngrpo.signing.evidence import Evidence, registered_evidence
    from ngrpo.tracking.promotions import Promotions

    if found.version is None:
        return Evidence(f"model {found.name}, which is in no registry,")
    return registered_evidence(Promotions.in_store(around.store_uri, found.model_name), found.version)
