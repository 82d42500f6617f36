"""Sign a version after the decision on its promotion: the content of the statement, and where it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.config import ModelPromotionConfig
from ngrpo.config.code import with_digests
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.contracts.promotion import Promotion, Signed
from ngrpo.evaluation.stored_evaluation import MODEL
from ngrpo.report.wording import public
from ngrpo.signing.keys import PrivateKey
from ngrpo.storage.digest import file_digests
from ngrpo.tracking.model_registry import ModelRegistry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.signing.statement import Predicate
    from ngrpo.tracking.promotions import Entry


def predicate(
    config: ModelPromotionConfig,
    *,
    digest: str,
    decision: Promotion,
    history: Sequence[Entry],
    evaluation: tuple[str, bytes, Evaluation],
    lineage: Mapping[str, str],
    code: Mapping[str, str],
    images: str | None,
) -> Predicate:
    """Return the statement on a version.

    Args:
        config: Settings of the promotion and of what led to it; paths of this machine are left out.
        digest: Digest of the model's files.
        decision: What was decided.
        history: Earlier decisions on the version, oldest first. If the version is the champion already, its promotion is stated, because
            that has an interval.
        evaluation: Key, content of the file, and the evaluation that was decided on.
        lineage: Keys of the results that led to the model, by name.
        code: Version of the code by stage.
        images: `ngrpo.stages.surroundings.IMAGES`.
    """
    from ngrpo.signing.statement import digest_of_protocol

    key, data, parsed = evaluation
    promotions = [entry for entry in history if entry["decision"] == "promoted"]
    later = decision["decision"] == "unchanged" and bool(promotions)
    decided = promotions[-1] if later else decision
    protocol = parsed.get("protocols", {}).get(MODEL, {})
    return {
        "model": decision["model"],
        "version": str(decision["version"]),
        "digest": digest,
        "decision": {
            "decision": decided["decision"],
            "reason": decided["reason"],
            "comparison": _as_read(decided["comparison"]),
        },
        "evaluation": {
            "key": key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "protocol": protocol,
            "protocol_sha256": digest_of_protocol(protocol),
            "later": later,
        },
        "data": _settings(config.data.model_dump(mode="json", exclude_none=True)),
        "base": _settings(config.model.source.model_dump(mode="json", exclude_none=True)),
        "lineage": dict(lineage),
        "code": {"ngrpo": metadata.version("ngrpo"), **code},
        "images": json.loads(images) if images else {},
    }


def sign(registry: ModelRegistry, version: ModelVersion, model: Path, said: Predicate, key: PrivateKey) -> Signed:
    """Sign a version and store the signatures with it, replacing earlier ones; its files do not change.

    Args:
        registry: The registered model.
        version: The version.
        model: Its files.
        said: The statement.
        key: The key.

    Raises:
        TrackingError: The registry cannot be reached.
    """
    from ngrpo.signing.evidence import SEAL
    from ngrpo.signing.files import sign_files
    from ngrpo.signing.statement import sign_statement

    seal = (sign_files(model, key), sign_statement(file_digests(model), said, key), key.public.pem)
    for name, data in zip(SEAL, seal, strict=True):
        registry.add_file(version, name, data)
    return {"key": key.public.fingerprint, "files": list(SEAL)}


def _settings(tree: dict[str, Any]) -> dict[str, Any]:
    return public(with_digests(tree))


def _as_read(comparison: Any) -> Any:
    """Return a comparison in the form of the history."""
    return json.loads(json.dumps(comparison))
