"""The in-toto statement on a promoted model: its files, origins, evaluation and decision.

A Statement v1 (https://github.com/in-toto/attestation/tree/main/spec/v1) on the files of the model, in a DSSE envelope
(https://github.com/secure-systems-lab/dsse), signed with the same key as the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.signing.files import BrokenSignatureError
from ngrpo.signing.keys import PrivateKey, PublicKey
from ngrpo.storage.state import DamagedStateError, parse_state

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:ngrpo:promotion:v1"
_PAYLOAD = "application/vnd.in-toto+json"


class Evaluated(TypedDict):
    """The evaluation that the model is judged by: its key, the sha256 of its file, its protocol, and the sha256 of that.

    `later` is true if it was made after the decision, on the same files: its figures may then differ from those of the decision.
    """

    key: str
    sha256: str
    protocol: dict[str, Any]
    protocol_sha256: str
    later: bool


class Decided(TypedDict):
    """The decision: `promoted`, `kept` or `unchanged`, why, and the paired comparison with its interval."""

    decision: str
    reason: str
    comparison: dict[str, Any] | None


class Predicate(TypedDict):
    """What the statement says about the files.

    `model` is the registered model, `version` its version, and `digest` the digest of the files (`ngrpo.storage.digest.model_digest`).
    `data` are the sources of the data with their revisions, `base` is the source of the base model, `lineage` are the keys of the stages,
    `code` the code versions, and `images` the container images by stage, empty for a run without containers.
    """

    model: str
    version: str
    digest: str
    decision: Decided
    evaluation: Evaluated
    data: dict[str, Any]
    base: dict[str, Any]
    lineage: dict[str, str]
    code: dict[str, str]
    images: dict[str, str]


class _Subject(TypedDict):
    name: str
    digest: dict[str, str]


class Statement(TypedDict):
    """The whole statement, with in-toto's field names."""

    _type: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[list[_Subject], Field(min_length=1)]
    predicateType: Literal["urn:ngrpo:promotion:v1"]
    predicate: Predicate


def sign_statement(files: Mapping[str, str], predicate: Predicate, key: PrivateKey) -> bytes:
    """Return a signed statement, as `promotion.intoto.json` holds it.

    Args:
        files: The sha256 of every file of the model, by relative path.
        predicate: What it says about them.
        key: The key to sign with.
    """
    statement = {
        "_type": TYPE,
        "subject": [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    payload = json.dumps(statement, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    envelope = Envelope(payload, _PAYLOAD, {})
    envelope.sign(CryptoSigner(key.key, _named(key.public)))
    return json.dumps(envelope.to_dict(), indent=1).encode()


def verify_statement(signed: bytes, key: PublicKey) -> Statement:
    """Return a statement after verifying its signature.

    Args:
        signed: What `sign_statement` returned.
        key: The key that must have signed it.

    Raises:
        BrokenSignatureError: It is not a statement on a promotion, or not signed by that key.
    """
    try:
        envelope = Envelope.from_dict(json.loads(signed))
        keys = list(envelope.signatures)
        envelope.verify([_named(key)], 1)
    except VerificationError as error:
        other = keys != [key.fingerprint]
        said = "it was made with another key" if other else "the signature is wrong: its content was changed"
        raise BrokenSignatureError(said) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        # JSON that is not an envelope
        raise BrokenSignatureError(f"no envelope of DSSE ({type(error).__name__})") from error
    if envelope.payload_type != _PAYLOAD:
        raise BrokenSignatureError(f"its content is of the type {envelope.payload_type!r}, not an in-toto statement")
    try:
        return parse_state(envelope.payload, Statement, where="its content", cure="promote again")
    except DamagedStateError as error:
        raise BrokenSignatureError(f"no statement on a promotion: {error}") from error


def subject_of(statement: Statement) -> dict[str, str]:
    """Return the sha256 of every file that a statement is about, by relative path."""
    return {subject["name"]: subject["digest"].get("sha256", "") for subject in statement["subject"]}


def digest_of_protocol(protocol: Mapping[str, Any]) -> str:
    """Return the sha256 of the protocol of an evaluation."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _named(key: PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.key, keyid=key.fingerprint)
