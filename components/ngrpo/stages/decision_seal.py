"""Sign a decision that a person or the watch made on a registered version, as the stage `model_promotion` signs its decisions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.signing.keys import PrivateKey
    from ngrpo.signing.statement import Predicate
    from ngrpo.stages.promotion_seal import Provenance
    from ngrpo.tracking.model_registry import ModelRegistry
    from ngrpo.tracking.promotions import Promotions

    MadeBy = Callable[[ModelVersion], RunConfig | None]
    """Returns the settings of the run that made a version; None if they are unknown."""


def decision_key(config: RunConfig) -> PrivateKey | None:
    """Return the key that signs decisions; None if the settings name no key. Called before a decision, so that an unusable key prevents it.

    Raises:
        ConfigError: The key that `signing.private_key` names is missing or invalid, or the signing library is missing.
    """
    if config.signing.private_key is None:
        return None
    from ngrpo.signing.keys import private_key

    try:
        return private_key(config.signing, os.environ.get)
    except ConfigError as error:
        raise ConfigError(f"{error}; or decide unsigned: --set 'signing={{}}'") from error


def sign_decision(promotions: Promotions, decision: Mapping[str, Any], key: PrivateKey, made_by: MadeBy) -> str:
    """Sign a decision on a version, replace its earlier signatures, and return a line that reports it.

    Data, base model and images are taken from the earlier statement if it was signed with the same key; otherwise from the settings of
    the run that made the version, if they are known.

    Args:
        promotions: The decisions on the registered model.
        decision: The decision (`ngrpo.stages.promotion_seal.predicate`).
        key: The key.
        made_by: Returns the settings of the run that made the version.

    Raises:
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    from ngrpo.contracts.evaluation import parse_evaluation
    from ngrpo.stages.promotion_seal import predicate, sign
    from ngrpo.storage.digest import model_digest
    from ngrpo.tracking.model_registry import DIGEST, evaluation_key

    registry, number = promotions.registry, str(decision["version"])
    version = registry.version(number)
    data = None if version is None else registry.evaluation(version)
    if version is None or data is None:
        return f"version {number} is not signed: {'it is gone' if version is None else 'it has no evaluation'}"
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        model = registry.download(version, Path(scratch))
        digest = model_digest(model)
        if digest != version.tags.get(DIGEST):
            return f"version {number} is not signed: its files are not those that were registered"
        before = _said_before(registry, version, key, digest)
        said = predicate(
            decision,
            digest=digest,
            history=[entry for entry in promotions.history() if entry["version"] == number],
            evaluation=(
                evaluation_key(version) or "",
                data,
                parse_evaluation(data, where=f"version {number}: its evaluation", cure="evaluate the model again"),
            ),
            provenance=_provenance(registry, version, before, made_by),
            images={} if before is None else before["images"],
        )
        signed = sign(registry, version, model, said, key)
    return f"version {number} is signed by the key sha256 {signed['key']}"


def _said_before(registry: ModelRegistry, version: ModelVersion, key: PrivateKey, digest: str) -> Predicate | None:
    """Return the predicate of a version's statement on these files; None if it has no statement by this key."""
    from ngrpo.signing.evidence import STATEMENT
    from ngrpo.signing.files import BrokenSignatureError
    from ngrpo.signing.statement import verify_statement

    statement = registry.file(version, STATEMENT)
    try:
        said = None if statement is None else verify_statement(statement, key.public)["predicate"]
    except BrokenSignatureError:
        return None
    return said if said is not None and said["digest"] == digest else None


def _provenance(
    registry: ModelRegistry, version: ModelVersion, before: Predicate | None, made_by: MadeBy
) -> Provenance:
    from ngrpo.stages.promotion_seal import Provenance
    from ngrpo.storage.manifest import MANIFEST, Manifest
    from ngrpo.storage.state import DamagedStateError
    from ngrpo.tracking.model_registry import evaluation_key

    judged = {"evaluation": evaluation_key(version) or ""}
    if before is not None:
        code = {name: version for name, version in before["code"].items() if name != "ngrpo"}
        return Provenance({**before["lineage"], **judged}, code, before["data"], before["base"])
    data = registry.file(version, MANIFEST)
    try:
        made = None if data is None else Manifest.from_bytes(data)
    except DamagedStateError:
        made = None
    lineage = judged if made is None else {"trained": made.key, **judged, **made.inputs}
    code = {} if made is None else {"ngrpo_training": made.code_version}
    own = made_by(version)
    return Provenance(lineage, code) if own is None else Provenance.of(own, lineage=lineage, code=code)
