"""Promotions of one registered model: one at a time whatever the machine, whole whatever is killed, and never forgotten.

MLflow lets the last writer of an alias win, so everything between reading the champion and naming another happens under a lock in
object storage (`ngrpo.storage.lease`). The lock's object is the journal too: a decision is written there, on the condition that the
lock is still held, before any of it is written elsewhere. From then on it counts: whoever takes the lock next first finishes
what a killed process left. `history/` beside it holds every decision that was carried out.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

from mlflow.entities.model_registry import ModelVersion

from ngrpo.errors import StoreError, TrackingError
from ngrpo.storage.lease import Lease, hold
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.registry import ALIASES, CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, ModelRegistry

DECISION, REASON, COMPARISON = "ngrpo.decision", "ngrpo.reason", "ngrpo.comparison"
"""Tags of a version: the last decision on it, why, and the evidence as JSON."""
BARRED = "ngrpo.rolled_back"
"""Tag of a version: why it was rolled back; empty once it was promoted again by hand."""
_PROMOTED, _ROLLED_BACK = "promoted", "rolled_back"
_PLACE = "ngrpo.promotions"  # tag of the registered model: which lock guards it

Aliases = dict[str, str | None]


class Promotions:
    """The decisions on one registered model.

    Every method raises a `TrackingError` where the registry cannot be reached and a `StoreError` where the object store cannot.
    """

    def __init__(self, registry: ModelRegistry, objects: ObjectStore, *, lease_seconds: float = 60.0):
        """Use a registry and the prefix that holds its locks.

        Args:
            registry: The registered model.
            objects: Prefix of all locks and histories; it is no cache, its content cannot be made again.
            lease_seconds: How long a promotion that was killed keeps others out.
        """
        self.registry = registry
        self._objects = objects
        self._lease_seconds = lease_seconds

    @classmethod
    def from_environment(cls, model_name: str) -> Self:
        """Return the promotions of a model in the MLflow and the object store (`NGRPO_STORE`) that the environment names.

        Raises:
            StoreError: `NGRPO_STORE` is not set.
        """
        store = os.environ.get("NGRPO_STORE")
        if not store:
            raise StoreError(
                "NGRPO_STORE is not set: the lock of promotions is kept there; set it to s3://bucket/prefix"
            )
        return cls(ModelRegistry(model_name), ObjectStore(f"{store.rstrip('/')}/promotions"))

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait until no other process promotes, finish what a killed one left, and keep others out while the context is open.

        Raises:
            TrackingError: Promotions of this model are guarded by another object store.
        """
        with hold(self._objects, f"{self.registry.name}/lock.json", seconds=self._lease_seconds) as lease:
            if "id" not in lease.state:
                lease.write({"id": uuid.uuid4().hex, "sequence": 0, "undo": None, "pending": None})
            self._require_this_lock(lease)
            turn = Turn(self.registry, self._objects, lease)
            turn.finish()
            yield turn

    def history(self) -> list[dict[str, Any]]:
        """Return every decision, oldest first (see `Turn.settle`)."""
        keys = self._objects.list(f"{self.registry.name}/history/")
        return [json.loads(data) for key in keys if (data := self._objects.get_bytes(key)) is not None]

    def rollback(self, reason: str) -> dict[str, Any]:
        """Undo the last promotion that is in effect: the aliases name what they named before it. Again undoes the one before.

        Args:
            reason: Why; kept in the history. The version is not promoted again unless by hand.

        Returns:
            The entry of the history.

        Raises:
            TrackingError: There is nothing to undo, the champion was not made by the last promotion, or the version that would
                be champion again, or its files, are gone.
        """
        with self.turn() as turn:
            undone = turn.last_promotion()
            aliases = self.registry.aliases()
            name = self.registry.name
            if undone is None:
                raise TrackingError(f"model {name}: no promotion is in effect, so there is nothing to roll back")
            if aliases[CHAMPION] != undone["version"]:
                raise TrackingError(
                    f"model {name}: the champion is version {aliases[CHAMPION]}, but the last promotion made it version "
                    f"{undone['version']}: its alias was changed by hand; change it back by hand, or promote another version"
                )
            before: Aliases = undone["before"]
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

    def _require_this_lock(self, lease: Lease) -> None:
        """Refuse to promote under a lock that others do not look at."""
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
    """The time in which no other process promotes (`Promotions.turn`)."""

    def __init__(self, registry: ModelRegistry, objects: ObjectStore, lease: Lease):
        """Start the turn of the process that holds the lock."""
        self._registry = registry
        self._objects = objects
        self._lease = lease

    def nominate(self, version: ModelVersion) -> None:
        """Let the alias `candidate` name a version: if this process is killed, that one still waits for its decision."""
        self._lease.require()
        self._registry.set_alias(CANDIDATE, str(version.version))

    def promote(self, candidate: ModelVersion, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """Make a candidate the champion and return the entry of the history; `verdict` as in `settle`."""
        before, number = self._registry.aliases(), str(candidate.version)
        after = _without(before, number) | {CHAMPION: number}
        if before[CHAMPION] is not None:
            after[PREVIOUS_CHAMPION] = before[CHAMPION]
        return self.settle(number, verdict, after, undo=self._lease.state["sequence"] + 1)

    def challenge(self, candidate: ModelVersion, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """Mark a candidate as the last one that did not win and return the entry of the history; `verdict` as in `settle`."""
        number = str(candidate.version)
        after = _without(self._registry.aliases(), number) | {CHALLENGER: number}
        return self.settle(number, verdict, after, undo=self._lease.state["undo"])

    def settle(self, number: str, verdict: Mapping[str, Any], after: Aliases, *, undo: int | None) -> dict[str, Any]:
        """Write a decision: into the journal first, from where it is finished whatever happens, then everywhere else.

        Args:
            number: The version that was decided on.
            verdict: `decision`, `reason` and `comparison`.
            after: What every alias names from now on.
            undo: Number of the decision that a rollback undoes from now on.

        Returns:
            The entry of the history: `sequence`, `time` (for people: nothing depends on it), `version`, the verdict, the aliases
            `before` and `after`, and what a rollback had undone before (`undo`).
        """
        state = self._lease.state
        entry = {
            "sequence": state["sequence"] + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": number,
            **{name: verdict[name] for name in ("decision", "reason", "comparison")},
            "before": {**self._registry.aliases(), CANDIDATE: None},
            "after": after,
            "undo": state["undo"],
        }
        self._lease.write({**state, "sequence": entry["sequence"], "undo": undo, "pending": entry})
        self.finish()
        return entry

    def finish(self) -> None:
        """Carry out the decision in the journal, if there is one; whatever of it is done already is done again."""
        entry = self._lease.state["pending"]
        if entry is None:
            return
        history = f"{self._registry.name}/history/{entry['sequence']:08d}.json"
        self._objects.put_bytes(json.dumps(entry, indent=1).encode(), history)
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
            # A version that someone deleted in the meantime has lost its aliases, and no alias may name it again.
            number = entry["after"][alias] if entry["after"][alias] in numbers else None
            if now[alias] != number:
                self._lease.require()
                self._registry.set_alias(alias, number)
        self._lease.write({**self._lease.state, "pending": None})

    def last_promotion(self) -> dict[str, Any] | None:
        """Return the history's entry of the promotion that a rollback undoes; none if there is none."""
        sequence = self._lease.state["undo"]
        if sequence is None:
            return None
        data = self._objects.get_bytes(f"{self._registry.name}/history/{sequence:08d}.json")
        if data is None:
            raise TrackingError(
                f"model {self._registry.name}: {self._objects.uri}/{self._registry.name}/history/{sequence:08d}.json is gone, so it is "
                "not known what to roll back to: promote a version instead"
            )
        entry: dict[str, Any] = json.loads(data)
        return entry


def _without(aliases: Aliases, number: str) -> Aliases:
    """Return the aliases of everyone but one who is about to get another: it waits and challenges no longer."""
    return {
        alias: None if alias in (CANDIDATE, CHALLENGER) and holder == number else holder
        for alias, holder in aliases.items()
    }
