"""Records of the champion watch, which evaluates served champions: a series of looks for each model, kept beside its promotions.

A series has one champion, one evaluation and one set of terms; if one of them changes, a new series starts. It is written as a whole, under
a lock between machines (`ngrpo.storage.lease`), so that two watches at the same time lose no look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.storage.conditional_writes import require_conditional_writes
from ngrpo.storage.lease import Content, hold
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError

_FOLDER = "watches"  # of the artifact store
_Count = Annotated[int, Field(ge=0)]


class Terms(TypedDict):
    """Terms under which the error rate of a series holds: a champion, the evaluation to compare with, and the settings of the comparison.

    `problems` has the ids of each benchmark's problems, in the order of `Look.correct`; `margin` is in percentage points.
    """

    version: str
    digest: str
    evaluation: str
    margin: float
    confidence: float
    problems: dict[str, list[str]]


class Look(TypedDict):
    """One look at a served champion.

    `time` is for information only. `seed` is that of the samples, `samples` their number per problem. `correct` has for each benchmark
    the number of correct samples of each problem.
    """

    time: str
    seed: _Count
    samples: Annotated[int, Field(ge=1)]
    correct: dict[str, list[_Count]]


class Series(TypedDict):
    """Looks at a champion, oldest first, and the number of the first look that raised an alarm, counted from 1."""

    terms: Terms
    looks: Annotated[list[Look], Field(min_length=1)]
    alarm: Annotated[int, Field(ge=1)] | None


class _State(TypedDict):
    series: Series | None


class Watches:
    """The series of one registered model."""

    def __init__(self, objects: ObjectStore, model_name: str):
        """Use the prefix that holds the series of all models."""
        self._objects = objects
        self._name = model_name

    @classmethod
    def in_store(cls, store: str, model_name: str) -> Self:
        """Return the series of a model in an artifact store, `s3://bucket/prefix`."""
        return cls(ObjectStore(f"{store.rstrip('/')}/{_FOLDER}"), model_name)

    def add(self, terms: Terms, look: Look, is_alarm: Callable[[Series], bool]) -> Series:
        """Add a look to the series, or start a new series if the terms differ, and return the series.

        Args:
            terms: Terms of the look.
            look: The look.
            is_alarm: Whether the last look of a series raises an alarm.

        Raises:
            DamagedStateError: The stored series is damaged; it is not changed.
            StoreError: The object store cannot be reached, or does not support conditional writes.
            ValueError: The numbers of problems in look and terms differ.
        """
        if {name: len(counts) for name, counts in look["correct"].items()} != {
            name: len(ids) for name, ids in terms["problems"].items()
        }:
            raise ValueError("the look has other numbers of problems than its terms")
        require_conditional_writes(self._objects, self._name)
        cure = "delete it: the next look starts a new series"
        content = Content(_State, _none_yet, cure)
        with hold(self._objects, f"{self._name}/series.json", content) as lease:
            before = lease.state["series"]
            if before is not None and before["terms"] == terms:
                _require_whole(before, f"{self._objects.uri}/{self._name}/series.json", cure)
                series: Series = {**before, "looks": [*before["looks"], look]}
            else:
                series = {"terms": terms, "looks": [look], "alarm": None}
            if series["alarm"] is None and is_alarm(series):
                series["alarm"] = len(series["looks"])
            lease.write({"series": series})
        return series


def _none_yet() -> _State:
    return {"series": None}


def _require_whole(series: Series, where: str, cure: str) -> None:
    """Refuse a series whose looks do not fit its terms: it was changed by hand."""
    sizes = {name: len(ids) for name, ids in series["terms"]["problems"].items()}
    for look in series["looks"]:
        fits = {name: len(counts) for name, counts in look["correct"].items()} == sizes
        if not fits or any(count > look["samples"] for counts in look["correct"].values() for count in counts):
            raise DamagedStateError(f"{where}: damaged: a look of {look['time']} does not fit the problems; {cure}")
