"""Sign a version after the decision on its promotion: the content of the statement, and where it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ngrpo.config import ModelPromotionConfig, RunConfig, Section
from ngrpo.config.code import with_digests
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.contracts.promotion import Signed
from ngrpo.evaluation.stored_evaluation import MODEL
from ngrpo.report.wording import public
from ngrpo.signing.keys import PrivateKey
from ngrpo.storage.digest import file_digests
from ngrpo.tracking.model_registry import ModelRegistry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.signing.statement import Predicate
    from ngrpo.tracking.promotions import Entry


@dataclass(frozen=True)
class Provenance:
    """Where a version comes from."""

    lineage: Mapping[str, str]
    """Keys of the results that led to the model, by name."""
    code: Mapping[str, str]
    """Version of the code by stage."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Sources of the data, as settings without paths of this machine; empty where they are not known."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Source of the base model; see `data`."""

    @classmethod
    def of(
        cls, config: ModelPromotionConfig | RunConfig, *, lineage: Mapping[str, str], code: Mapping[str, str]
    ) -> Self:
        """Return a provenance with the sources that settings name."""
        return cls(lineage, code, _settings(config.data), _settings(config.model.source))


def predicate(
    decision: Mapping[str, Any],
    *,
    digest: str,
    history: Sequence[Entry],
    evaluation: tuple[str, bytes, Evaluation],
    provenance: Provenance,
    images: Mapping[str, str],
) -> Predicate:
    """Return the statement on a version.

    Args:
        decision: What was decided: `model`, `version`, `decision`, `reason` and `comparison`.
        digest: Digest of the model's files.
        history: Earlier decisions on the version, oldest first. If the version is the champion already, its promotion is stated, because
            that has an interval.
        evaluation: Key, content of the file, and the evaluation that speaks for the version.
        provenance: Where the version comes from.
        images: Those of the run by stage, where it ran in any.
    """
    from ngrpo.signing.statement import digest_of_protocol

    key, data, parsed = evaluation
    promotions = [entry for entry in history if entry["decision"] == "promoted"]
    unchanged = decision["decision"] == "unchanged" and bool(promotions)
    decided = promotions[-1] if unchanged else decision
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
            # A rollback repeats the comparison of the promotion that it undoes.
            "later": unchanged or decision["decision"] == "rolled_back",
        },
        "data": dict(provenance.data),
        "base": dict(provenance.base),
        "lineage": dict(provenance.lineage),
        "code": {"ngrpo": metadata.version("ngrpo"), **provenance.code},
        "images": dict(images),
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


def _settings(section: Section) -> dict[str, Any]:
    return public(with_digests(section.model_dump(mode="json", exclude_none=True)))


def _as_read(comparison: Any) -> Any:
    """Return a comparison in the form of the history."""
    return json.loads(json.dumps(comparison))
