"""Verify the signatures of a model link by link: files, statement, evaluation, decision and key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ngrpo.contracts.evaluation import parse_evaluation
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.signing.evidence import SIGNATURE, SIGNER, STATEMENT, Evidence
from ngrpo.signing.files import BrokenSignatureError, difference, verify_files
from ngrpo.signing.keys import PublicKey, public_key
from ngrpo.signing.statement import Statement, digest_of_protocol, subject_of, verify_statement
from ngrpo.storage.digest import digest_of, file_digests
from ngrpo.storage.state import DamagedStateError

FILES = "signature over the files"
STATEMENT_LINK = "signature of the statement"
SUBJECT = "subject of the statement"
EVALUATION = "evaluation"
DECISION = "interval and decision"
KEY = "key"
_MODEL = "trained"
_CLOSE = 1e-6
"""Tolerance in points, for rounding in means of means and in JSON."""


class VerificationError(NGRPOError):
    """A model is unsigned, or its signatures do not verify."""


@dataclass(frozen=True)
class Link:
    """One link in the chain of trust from a key to a model."""

    name: str
    state: Literal["holds", "broken", "not checked"]
    said: str
    """Why, in a few words."""


@dataclass(frozen=True)
class Verified:
    """A model with valid signatures."""

    links: tuple[Link, ...]
    fingerprint: str
    """The sha256 of the public key."""


@dataclass(frozen=True)
class Unsigned:
    """A model without signatures."""

    label: str

    def __str__(self) -> str:
        """Say so."""
        return f"{self.label} is unsigned: nothing vouches for it"


def verify_model(files: Path | Mapping[str, str], evidence: Evidence, key: PublicKey | None) -> Verified | Unsigned:
    """Verify the signatures of a model.

    Args:
        files: The directory of the model, or the sha256 of every file in it by relative path.
        evidence: Its signatures and the records they cover.
        key: The key that must have signed it; None to accept the key that comes with the signatures.

    Returns:
        The links; or that the model is unsigned, if no key is required.

    Raises:
        VerificationError: A link is broken (the message names the first), or a key is required and the model is unsigned.
    """
    if not evidence.signed:
        unsigned = Unsigned(evidence.label)
        if key is None:
            return unsigned
        raise VerificationError(
            f"{unsigned}, and a signature by the key sha256 {key.fingerprint} is asked for; {_CURE}"
        )
    links = examine(files, evidence, key)
    require_links(links, evidence)
    signer = key or _signer(evidence)
    return Verified(tuple(links), "" if signer is None else signer.fingerprint)


def require_links(links: Iterable[Link], evidence: Evidence) -> None:
    """Refuse a model with a broken link.

    Raises:
        VerificationError: There is one; the message names the first.
    """
    for link in links:
        if link.state == "broken":
            raise VerificationError(f"{evidence.label}: {link.name}: {link.said}; {_CURE}")


_CURE = "restore what was signed, or promote and sign again (docs/signing.md)"


def examine(files: Path | Mapping[str, str], evidence: Evidence, key: PublicKey | None) -> list[Link]:
    """Return every link of a signed model, in order; see `verify_model`."""
    found = file_digests(files) if isinstance(files, Path) else dict(files)
    # Signatures are verified with the key that comes with them. With any other key all would fail, and a foreign key could not be told
    # from a changed file. The last link checks that this key is the required one.
    signer = _signer(evidence) or key
    links = [_files(found, evidence, signer)]
    stated, statement = _statement(evidence, signer)
    links.append(stated)
    if statement is None:
        unchecked = "the statement does not hold"
        links += [Link(name, "not checked", unchecked) for name in (SUBJECT, EVALUATION, DECISION)]
    else:
        links += [
            _link(SUBJECT, _about(statement, found, evidence)),
            _evaluation(statement, found, evidence),
            _decision(statement, evidence),
        ]
    return [*links, _key(evidence, key)]


def _signer(evidence: Evidence) -> PublicKey | None:
    try:
        return None if evidence.signer is None else public_key(evidence.signer, SIGNER)
    except ConfigError:
        return None  # the link of the key reports it


def _link(name: str, problems: Iterator[str], holds: str = "") -> Link:
    problem = next(problems, None)
    return Link(name, "holds", holds) if problem is None else Link(name, "broken", problem)


def _files(found: Mapping[str, str], evidence: Evidence, signer: PublicKey | None) -> Link:
    if evidence.signature is None:
        return Link(FILES, "broken", f"{SIGNATURE} is missing")
    if signer is None:
        return Link(FILES, "not checked", "there is no key to verify it with")
    try:
        verify_files(found, evidence.signature, signer)
    except BrokenSignatureError as error:
        return Link(FILES, "broken", f"{SIGNATURE}: {error}")
    return Link(FILES, "holds", f"{len(found)} files")


def _statement(evidence: Evidence, signer: PublicKey | None) -> tuple[Link, Statement | None]:
    if evidence.statement is None:
        return Link(STATEMENT_LINK, "broken", f"{STATEMENT} is missing"), None
    if signer is None:
        return Link(STATEMENT_LINK, "not checked", "there is no key to verify it with"), None
    try:
        statement = verify_statement(evidence.statement, signer)
    except BrokenSignatureError as error:
        return Link(STATEMENT_LINK, "broken", f"{STATEMENT}: {error}"), None
    return Link(STATEMENT_LINK, "holds", ""), statement


def _about(statement: Statement, found: Mapping[str, str], evidence: Evidence) -> Iterator[str]:
    differs = difference(subject_of(statement), found)
    if differs is not None:
        yield f"the statement is about other files ({differs})"
    said = statement["predicate"]
    if said["digest"] != digest_of(found):
        yield f"the statement is about the model {said['digest']}, and the files are {digest_of(found)}"
    if evidence.version is not None and said["version"] != evidence.version:
        yield f"the statement is about version {said['version']} of {said['model']}"


def _evaluation(statement: Statement, found: Mapping[str, str], evidence: Evidence) -> Link:
    if evidence.evaluation is None and evidence.version is None:
        return Link(EVALUATION, "not checked", "no evaluation.json there: verify the version in the registry")
    return _link(EVALUATION, _problems_of_evaluation(statement, found, evidence))


def _problems_of_evaluation(statement: Statement, found: Mapping[str, str], evidence: Evidence) -> Iterator[str]:
    signed = statement["predicate"]["evaluation"]
    if evidence.evaluation is None:
        yield f"the evaluation {signed['key']} is gone"
        return
    sha256 = hashlib.sha256(evidence.evaluation).hexdigest()
    if sha256 != signed["sha256"]:
        yield f"another evaluation (sha256 {sha256}) than was signed ({signed['sha256']})"
        return
    try:
        evaluation = parse_evaluation(evidence.evaluation, where="evaluation.json", cure="restore it")
    except DamagedStateError as error:
        yield str(error)
        return
    protocol = evaluation.get("protocols", {}).get(_MODEL, {})
    if not digest_of_protocol(protocol) == digest_of_protocol(signed["protocol"]) == signed["protocol_sha256"]:
        yield "another protocol than was signed"
    weights = evaluation.get("weights", {}).get(_MODEL)
    if weights != digest_of(found):
        yield f"it is of other weights ({weights}) than these files ({digest_of(found)})"


def _decision(statement: Statement, evidence: Evidence) -> Link:
    if evidence.decisions is None:
        return Link(DECISION, "not checked", "no registry is available: verify the version there")
    signed = statement["predicate"]["decision"]
    last = evidence.decisions[-1] if evidence.decisions else None
    since = ""
    if last is not None and _of(last) != dict(signed):
        since = f"; since then {last['decision'].replace('_', ' ')}: {last['reason']}"
    return _link(DECISION, _problems_of_decision(statement, evidence), f"{signed['decision']}{since}")


def _problems_of_decision(statement: Statement, evidence: Evidence) -> Iterator[str]:
    decided, signed = evidence.decisions or (), statement["predicate"]["decision"]
    # The version was made champion in another way, which the history does not record.
    if signed["decision"] == "unchanged":
        return
    if not any(_of(entry) == dict(signed) for entry in decided):
        alike = [entry for entry in decided if entry["decision"] == signed["decision"]]
        if not alike:
            yield f"the history has no decision {signed['decision']!r} on this version, which was signed"
        else:
            yield f"the history has {_worded(_of(alike[-1]))}, and {_worded(signed)} was signed"
    if not statement["predicate"]["evaluation"]["later"]:
        yield from _other_figures(signed["comparison"], evidence)


def _other_figures(comparison: Mapping[str, Any] | None, evidence: Evidence) -> Iterator[str]:
    """Yield where the comparison's figure of the candidate differs from its evaluation. Skipped for samples that were graded again."""
    if comparison is None or evidence.evaluation is None or comparison.get("graded_again"):
        return
    try:
        models = json.loads(evidence.evaluation)["models"][_MODEL]
        mean = 100 * models[comparison["benchmark"]]["mean"]
        said = float(comparison["candidate"])
    except (ValueError, KeyError, TypeError):
        yield "the evaluation lacks the benchmark that decided"
        return
    if str(comparison.get("statistic", "")).startswith("mean") and abs(mean - said) > _CLOSE:
        yield f"the comparison gives the candidate {said:.4f}, its evaluation {mean:.4f}"


def _of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("decision", "reason", "comparison")}


def _worded(decided: Mapping[str, Any]) -> str:
    interval = (decided["comparison"] or {}).get("interval")
    where = "" if interval is None else f" with the interval [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{decided['decision']!r}{where} ({decided['reason']})"


def _key(evidence: Evidence, key: PublicKey | None) -> Link:
    if evidence.signer is None:
        if key is None:
            return Link(
                KEY, "broken", f"{SIGNER} is missing, so it is not known who signed: name your key with --public-key"
            )
        return Link(KEY, "holds", f"sha256 {key.fingerprint}")  # the signatures were verified with this key
    try:
        signer = public_key(evidence.signer, SIGNER)
    except ConfigError as error:
        return Link(KEY, "broken", str(error).partition(";")[0])
    if key is None:
        return Link(KEY, "not checked", f"signed by the key sha256 {signer.fingerprint}: name yours with --public-key")
    if signer.fingerprint != key.fingerprint:
        return Link(
            KEY, "broken", f"a foreign key: signed by sha256 {signer.fingerprint}, asked for is {key.fingerprint}"
        )
    return Link(KEY, "holds", f"sha256 {key.fingerprint}")
