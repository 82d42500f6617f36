"""Promotions of one registered model: one at a time across machines, atomic even if a process is killed, and kept in a history.

In MLflow the last writer of an alias wins, so the champion is read and replaced under a lock in object storage (`ngrpo.storage.lease`).
The lock's object is the journal too: a decision is written there first, on the condition that the lock is still held, and then applied.
Once it is in the journal it is final: if the process is killed, the next holder of the lock first finishes applying it. `history/` beside
the lock holds all decisions.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from mlflow.entities.model_registry import ModelVersion
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.errors import StoreError, TrackingError
from ngrpo.storage.conditional_writes import require_conditional_writes
from ngrpo.storage.lease import Content, Lease, hold
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError, parse_state
from ngrpo.tracking.model_registry import ALIASES, CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, ModelRegistry
from ngrpo.tracking.reasons import checked_reason

DECISION, REASON, COMPARISON = "ngrpo.decision", "ngrpo.reason", "ngrpo.comparison"
"""Tags of a version: the last decision on it, why, and the evidence as JSON."""
BARRED = "ngrpo.rolled_back"
"""Tag of a version: why it was rolled back; empty once it was promoted again by hand."""
_PROMOTED, _ROLLED_BACK = "promoted", "rolled_back"
_PLACE = "ngrpo.promotions"  # tag of the registered model: which lock guards it

_FOLDER = "promotions"  # of the artifact store
_ENTRY = re.compile(r"[0-9]{8}\.json")

Aliases = dict[str, str | None]
"""The version number of each of `ALIASES`; None if it is not set."""


def _all_aliases(aliases: Aliases) -> Aliases:
    if aliases.keys() != set(ALIASES):
        raise ValueError(f"its aliases must be {', '.join(ALIASES)}")
    return aliases


_Number = Annotated[str, Field(pattern=r"^[0-9]+$")]
_Aliases = Annotated[dict[str, _Number | None], AfterValidator(_all_aliases)]
_Sequence = Annotated[int, Field(ge=1)]


class Entry(TypedDict):
    """A decision, as stored in the history.

    `sequence` is its number. `time` is for information only. `version` is the version that was decided on, `before` and `after` are the
    aliases. `undo` is the number of the decision that a rollback would have undone before this one was made.
    """

    sequence: _Sequence
    time: str
    version: _Number
    decision: Literal["promoted", "kept", "rolled_back"]
    reason: str
    comparison: dict[str, Any] | None
    before: _Aliases
    after: _Aliases
    undo: _Sequence | None


class Journal(TypedDict):
    """State of the lock: its id, the numbers of the last decision and of the one that a rollback undoes, and a decision to be applied."""

    id: str
    sequence: Annotated[int, Field(ge=0)]
    undo: _Sequence | None
    pending: Entry | None


class NoChampionLeftError(TrackingError):
    """A rollback would leave a model without a champion, which requires a confirmation."""

    def __init__(self, model_name: str, version: str):
        super().__init__(
            f"model {model_name}: rolling back version {version} leaves it without a champion, because it had none before; add --yes to "
            "confirm, or make another version the champion (ngrpo promote VERSION)"
        )
        self.model_name, self.version = model_name, version


class Promotions:
    """The decisions on one registered model.

    Every method raises a `TrackingError` if the registry cannot be reached, and a `StoreError` if the object store cannot.
    """

    def __init__(self, registry: ModelRegistry, objects: ObjectStore, *, lease_seconds: float = 60.0):
        """Use a registry and the prefix that holds its locks.

        Args:
            registry: The registered model.
            objects: Prefix of all locks and histories. It is not a cache: its content cannot be recreated.
            lease_seconds: How long a killed promotion blocks others.
        """
        self.registry = registry
        self._objects = objects
        self._lease_seconds = lease_seconds
        self._conditions_hold = False

    @classmethod
    def in_store(cls, store: str | None, model_name: str) -> Self:
        """Return the promotions of a model, with its lock in the artifact store and its versions in the MLflow of the environment.

        Args:
            store: `s3://bucket/prefix` of the artifact store; None if the environment has none.
            model_name: The registered model.

        Raises:
            StoreError: There is no store.
        """
        if not store:
            raise StoreError(
                "NGRPO_STORE is not set: the lock of promotions is kept there; set it to s3://bucket/prefix"
            )
        return cls(ModelRegistry(model_name), ObjectStore(f"{store.rstrip('/')}/{_FOLDER}"))

    @property
    def artifacts(self) -> str:
        """Address of the artifact store, which contains the prefix of the locks."""
        return self._objects.uri.removesuffix(f"/{_FOLDER}")

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Take the lock, waiting for other processes, and hold it while the context is open; first finish a killed process's decision.

        Raises:
            TrackingError: The lock of this model's promotions is in another object store.
            DamagedStateError: The journal is damaged.
            StoreError: The object store does not support conditional writes, which the lock needs.
        """
        if not self._conditions_hold:
            require_conditional_writes(self._objects, self.registry.name)
            self._conditions_hold = True
        content = Content(
            Journal,
            self._journal_of_history,
            "restore it, or delete it: the next promotion rebuilds it from history/ and applies the last decision there again",
        )
        with hold(self._objects, f"{self.registry.name}/lock.json", content, seconds=self._lease_seconds) as lease:
            self._require_this_lock(lease)
            turn = Turn(self.registry, self._objects, lease)
            turn.finish()
            yield turn

    def history(self) -> list[Entry]:
        """Return every decision, oldest first; a damaged one is left out, with a line on standard error."""
        entries = []
        for sequence in self._sequences():
            try:
                entry = _read_entry(self._objects, self.registry.name, sequence, "it is left out")
            except DamagedStateError as error:
                print(f"history: {error}", file=sys.stderr, flush=True)
            else:
                entries += [] if entry is None else [entry]
        return entries

    def _sequences(self) -> list[int]:
        """Return the numbers of all decisions in the history, in order."""
        names = [key.rpartition("/")[2] for key in self._objects.list(f"{self.registry.name}/history/")]
        return sorted(int(name.removesuffix(".json")) for name in names if _ENTRY.fullmatch(name))

    def _journal_of_history(self) -> Journal:
        """Rebuild a lost journal from the history; an empty one for a model without history.

        The last decision is applied again, in case its process was killed before it was done.
        """
        name = self.registry.name
        sequences = self._sequences()
        if not sequences:
            return {"id": uuid.uuid4().hex, "sequence": 0, "undo": None, "pending": None}

        def entry(sequence: int) -> Entry:
            cure = "restore it, or delete it: then the decision before it is applied again"
            found = _read_entry(self._objects, name, sequence, cure)
            if found is None:
                raise _gone(self._objects, name, sequence)
            return found

        last = entry(sequences[-1])
        undo = last["undo"]
        if last["decision"] == _PROMOTED:
            undo = last["sequence"]
        elif last["decision"] == _ROLLED_BACK and undo is not None:
            undo = entry(undo)["undo"]
        # The history is beside this lock, so this is the lock that other processes use.
        uri, _, identity = (self.registry.model_tag(_PLACE) or "").rpartition(" ")
        if uri != self._objects.uri:
            identity = uuid.uuid4().hex
        return {"id": identity, "sequence": last["sequence"], "undo": undo, "pending": last}

    def rollback(self, reason: str, *, of: str | None = None, to_none: bool = True) -> Entry:
        """Undo the last promotion in effect: the aliases return to their earlier versions. A second call undoes the one before.

        Args:
            reason: Why; kept in the history. The version is not promoted again unless by hand.
            of: Number of the version that must be the champion now; None accepts any.
            to_none: Whether the model may be left without a champion.

        Returns:
            The entry of the history.

        Raises:
            NoChampionLeftError: There was no champion before that promotion, and `to_none` is false; nothing was changed.
            ConfigError: The reason is empty or not plain text.
            TrackingError: There is nothing to undo, another version is champion by now, the champion was not set by the last promotion, or
                the version that would be champion again, or its files, are gone.
            DamagedStateError: The journal or that promotion's entry in the history is damaged.
        """
        reason = checked_reason(reason, "rollback")
        with self.turn() as turn:
            undone = turn.last_promotion()
            aliases = self.registry.aliases()
            name = self.registry.name
            if of is not None and aliases[CHAMPION] != of:
                raise TrackingError(f"model {name}: version {of} is not the champion any more: nothing is rolled back")
            if undone is None:
                raise TrackingError(f"model {name}: no promotion is in effect, so there is nothing to roll back")
            if aliases[CHAMPION] != undone["version"]:
                raise TrackingError(
                    f"model {name}: the champion is version {aliases[CHAMPION]}, but the last promotion made it version "
                    f"{undone['version']}: its alias was changed by hand; change it back by hand, or promote another version"
                )
            before: Aliases = undone["before"]
            if before[CHAMPION] is None and not to_none:
                raise NoChampionLeftError(name, undone["version"])
            self._require_files(before[CHAMPION])
            after = {**before, CANDIDATE: aliases[CANDIDATE]}
            return turn.settle(
                undone["version"],
                {"decision": _ROLLED_BACK, "reason": reason, "comparison": undone["comparison"]},
                after,
                undo=undone["undo"],
            )

    def _require_files(self, number: str | None) -> None:
        if number is None:
            return
        version = self.registry.version(number)
        problem = "was deleted" if version is None else ", ".join(self.registry.missing(version))
        if problem:
            raise TrackingError(
                f"model {self.registry.name}: version {number}, the champion before, cannot be champion again ({problem}): restore it, "
                "or promote another version"
            )

    def _require_this_lock(self, lease: Lease[Journal]) -> None:
        """Refuse to promote under a lock that other processes do not use."""
        place = f"{self._objects.uri} {lease.state['id']}"
        known = self.registry.model_tag(_PLACE)
        if known is None:
            lease.require()
            self.registry.set_model_tag(_PLACE, place)
        elif known != place:
            raise TrackingError(
                f"model {self.registry.name}: its promotions are guarded by the lock {known}, not by {place}: set NGRPO_STORE and "
                f"AWS_ENDPOINT_URL to that store, or, if it is gone for good, delete the model's tag {_PLACE}"
            )


class Turn:
    """Exclusive access to the promotions of a model (`Promotions.turn`)."""

    def __init__(self, registry: ModelRegistry, objects: ObjectStore, lease: Lease[Journal]):
        """Use the lock that this process holds."""
        self._registry = registry
        self._objects = objects
        self._lease = lease

    def nominate(self, version: ModelVersion) -> None:
        """Set the alias `candidate`: if this process is killed, the version remains marked as waiting for a decision."""
        self._lease.require()
        self._registry.set_alias(CANDIDATE, str(version.version))

    def promote(self, candidate: ModelVersion, verdict: Mapping[str, Any]) -> Entry:
        """Make a candidate the champion and return the entry of the history; `verdict` as in `settle`."""
        before, number = self._registry.aliases(), str(candidate.version)
        after = _without(before, number) | {CHAMPION: number}
        if before[CHAMPION] is not None:
            after[PREVIOUS_CHAMPION] = before[CHAMPION]
        return self.settle(number, verdict, after, undo=self._lease.state["sequence"] + 1)

    def challenge(self, candidate: ModelVersion, verdict: Mapping[str, Any]) -> Entry:
        """Mark a candidate as the last one that did not win and return the entry of the history; `verdict` as in `settle`."""
        number = str(candidate.version)
        after = _without(self._registry.aliases(), number) | {CHALLENGER: number}
        return self.settle(number, verdict, after, undo=self._lease.state["undo"])

    def settle(self, number: str, verdict: Mapping[str, Any], after: Aliases, *, undo: int | None) -> Entry:
        """Write a decision: into the journal first, so that the next process can finish it, then everywhere else.

        Args:
            number: The version that was decided on.
            verdict: `decision`, `reason` and `comparison`.
            after: The new version of every alias.
            undo: Number of the decision that a rollback undoes from now on.

        Returns:
            The entry of the history.
        """
        state = self._lease.state
        entry: Entry = {
            "sequence": state["sequence"] + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": number,
            "decision": verdict["decision"],
            "reason": verdict["reason"],
            "comparison": verdict["comparison"],
            "before": {**self._registry.aliases(), CANDIDATE: None},
            "after": after,
            "undo": state["undo"],
        }
        self._lease.write({**state, "sequence": entry["sequence"], "undo": undo, "pending": entry})
        self.finish()
        return entry

    def finish(self) -> None:
        """Apply the decision in the journal, if there is one; repeating finished parts is harmless."""
        entry = self._lease.state["pending"]
        if entry is None:
            return
        history = _history_key(self._registry.name, entry["sequence"])
        self._objects.put_bytes(json.dumps(entry, indent=1, allow_nan=False).encode(), history)
        numbers = {str(version.version): version for version in self._registry.versions()}
        if entry["version"] in numbers:
            tags = {
                DECISION: entry["decision"],
                REASON: entry["reason"],
                COMPARISON: json.dumps(entry["comparison"]),
            }
            if entry["decision"] in (_PROMOTED, _ROLLED_BACK):
                tags[BARRED] = entry["reason"] if entry["decision"] == _ROLLED_BACK else ""
            self._lease.require()
            self._registry.set_tags(numbers[entry["version"]], tags)
        now = self._registry.aliases()
        for alias in ALIASES:
            # A version deleted in the meantime has lost its aliases, and no alias may be set to it.
            number = entry["after"][alias] if entry["after"][alias] in numbers else None
            if now[alias] != number:
                self._lease.require()
                self._registry.set_alias(alias, number)
        self._lease.write({**self._lease.state, "pending": None})

    def last_promotion(self) -> Entry | None:
        """Return the history's entry of the promotion that a rollback undoes; None if there is none.

        Raises:
            TrackingError: The entry is gone.
            DamagedStateError: The entry is damaged.
        """
        sequence = self._lease.state["undo"]
        if sequence is None:
            return None
        name = self._registry.name
        cure = "so it is not known what to roll back to: restore it, or promote a version instead"
        entry = _read_entry(self._objects, name, sequence, cure)
        if entry is None:
            raise _gone(self._objects, name, sequence)
        return entry


def _history_key(name: str, sequence: int) -> str:
    return f"{name}/history/{sequence:08d}.json"


def _read_entry(objects: ObjectStore, name: str, sequence: int, cure: str) -> Entry | None:
    """Return a decision of the history; None if there is no such decision."""
    key = _history_key(name, sequence)
    data = objects.get_bytes(key)
    if data is None:
        return None
    where = f"{objects.uri}/{key}"
    entry = parse_state(data, Entry, where=where, cure=cure)
    if entry["sequence"] != sequence:
        raise DamagedStateError(f"{where}: damaged: it holds decision {entry['sequence']}; {cure}")
    return entry


def _gone(objects: ObjectStore, name: str, sequence: int) -> TrackingError:
    return TrackingError(
        f"model {name}: {objects.uri}/{_history_key(name, sequence)} is gone, so it is not known what to roll back to: promote a "
        "version instead"
    )


def _without(aliases: Aliases, number: str) -> Aliases:
    """Return the aliases, with `candidate` and `challenger` removed from a version that is about to get another alias."""
    return {
        alias: None if alias in (CANDIDATE, CHALLENGER) and holder == number else holder
        for alias, holder in aliases.items()
    }
