"""Record time and resources of a stage's process while it runs (`ngrpo.ledger.spending`)."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from ngrpo.environment import redacted
from ngrpo.errors import StoreError
from ngrpo.ledger.devices import hardware, visible_gpus
from ngrpo.ledger.meter import Meter
from ngrpo.ledger.shapes import remember, shape
from ngrpo.ledger.spending import Cost, Spent, keep, records_of, total
from ngrpo.stages.surroundings import Surroundings
from ngrpo.stages.task import Task
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import read_state

_EVERY_SECONDS = 60.0
_PATIENCE = 10.0
"""Longest delay of a stage's end by its record, in seconds, if the store is out of reach."""


class Metered:
    """The process of a stage, measured."""

    def __init__(self, task: Task, surroundings: Surroundings, *, follows: bool):
        """Start to measure."""
        gpus = [] if follows else _gpus_of(task.stage, surroundings)
        self._meter = Meter(gpus)
        self._store = surroundings.store
        self._objects: ObjectStore | None = None
        self._said = False
        self.outcome: Literal["published", "ended", "failed"] | None = None
        """How it ended; none if there was nothing to do, because the result was in the store."""
        now = datetime.now(UTC)
        machine = re.sub(r"[^A-Za-z0-9-]", "-", os.environ.get("KFP_POD_NAME") or socket.gethostname())
        self._record = Spent(
            stage=task.stage,
            key=task.key,
            name=f"{now:%Y%m%dT%H%M%S%fZ}-{machine}.{os.getpid()}",
            run=surroundings.run_name,
            shape=shape(task.stage, task.config_json),
            hardware=hardware(gpus),
            started=now.isoformat(),
            rank=surroundings.node_rank,
            role="follow" if follows else "work",
            gpus=len(gpus),
        )

    def record(self) -> Spent:
        """Return the spending so far."""
        taken = self._meter.read()
        return replace(
            self._record,
            outcome=self.outcome or "running",
            seconds=round(taken.seconds, 3),
            processor_seconds=round(taken.processor_seconds, 3),
            joules=None if taken.joules is None else round(taken.joules, 1),
        )

    def cost(self, objects: ObjectStore) -> Cost:
        """Return the spending on the result so far, including earlier tries and other nodes whose records can be read."""
        own = self.record()
        try:
            records = records_of(objects, own.stage, own.key)
        except StoreError as error:
            self._say(f"what other tries took is not known: {error}")
            return total([own])
        before = [one for one in records if one.name != own.name]
        published = [one.span[1] for one in before if one.outcome == "published"]
        since = max(
            published, default=float("-inf")
        )  # the result is made again: spending on the last one does not count
        return total([*(one for one in before if one.span[0] >= since), own])

    def keep(self) -> None:
        """Write the record. Errors of the store are logged, not raised: they must not cost a result."""
        record = self.record()
        try:
            if self._objects is None:
                self._objects = ObjectStore(self._store, patience=_PATIENCE)
            keep(self._objects, record)
            if record.outcome == "published":
                remember(self._objects, record)
        except StoreError as error:
            if not self._said:
                self._say(f"what it takes is not recorded: {error}")
            self._said = True

    def _say(self, line: str) -> None:
        print(f"{self._record.stage}: {redacted(line)}", file=sys.stderr, flush=True)


@contextmanager
def metered(task: Task, surroundings: Surroundings, *, follows: bool) -> Iterator[Metered]:
    """Measure the spending of a stage in this process while the context is open, and record it once a minute and at the end.

    Args:
        task: The task.
        surroundings: Where it runs.
        follows: Whether other processes do the work, and this one only waits for them.
    """
    process = Metered(task, surroundings, follows=follows)
    ended = threading.Event()

    def keep_on() -> None:
        while not ended.wait(_EVERY_SECONDS):
            process.keep()

    thread = threading.Thread(target=keep_on, name="ledger", daemon=True)
    thread.start()
    try:
        yield process
    except BaseException:
        process.outcome = "failed"
        raise
    finally:
        ended.set()
        thread.join()
        if process.outcome is not None:
            process.keep()


def _gpus_of(stage: str, surroundings: Surroundings) -> list[str]:
    """Return the GPUs of a stage: those of its pod, or on one machine as many visible ones as `resources` gives it."""
    visible = visible_gpus()
    if surroundings.run_directory is None or not visible:
        return visible
    settings = read_state(surroundings.run_directory / "config.json", dict, cure="run again")
    asked = ((settings or {}).get("resources", {}).get(stage) or {}).get("gpus", 0)
    return visible[:asked]
