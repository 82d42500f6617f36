"""The tries of a stage on a cluster: outcome and output of each, stored beside the artifacts.

Pods are deleted an hour after their run, or with their node. These records stay: `tries/<stage>/<key>/<name>.json` and `.log` below the
artifact store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import parse_state

Outcome = Literal["running", "succeeded", "failed", "stopped", "lost"]
"""`stopped`: by SIGTERM. `lost`: its pod is gone, and a later try replaced it."""

_FOLDER = "tries"
_BEGINS = re.compile(r"ngrpo: \w+: try \d+ of \d+ begins$")
_ENDS = re.compile(r"ngrpo: \w+: try \d+ of \d+ (succeeded|failed|stopped)")


@dataclass(frozen=True)
class Try:
    """One try of a stage."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    stage: str
    key: str
    """Key of the result that it works on."""
    name: Annotated[str, Field(pattern=r"^[0-9TZ]+-[A-Za-z0-9.-]+$")]
    """Start time and pod, so that names sort by time."""
    pipeline_run: str | None
    """Id of the pipeline run."""
    pod: str
    number: int
    """Number of the try in this pod, from 1."""
    of: int
    """Most tries of a pod."""
    started: str
    """ISO 8601, UTC."""
    seconds: float | None = None
    """Its duration; none while it runs."""
    outcome: Outcome = "running"
    error: str | None = None
    """The stage's error line."""
    reason: str | None = None
    """The reason that may leave the cluster; earlier versions stored none."""

    @property
    def place(self) -> str:
        """Key of its objects in the store, without `.json` and `.log`."""
        return f"{_FOLDER}/{self.stage}/{self.key}/{self.name}"


def begin(stage: str, key: str, *, pipeline_run: str | None, pod: str, number: int, of: int) -> Try:
    """Return the record of a try that starts now."""
    now = datetime.now(UTC)
    return Try(stage, key, f"{now:%Y%m%dT%H%M%S%fZ}-{pod}", pipeline_run, pod, number, of, now.isoformat())


def keep(objects: ObjectStore, attempt: Try, log: bytes | None = None) -> None:
    """Write the record of a try and its output so far.

    Raises:
        StoreError: The store cannot be reached.
    """
    objects.put_bytes(json.dumps(asdict(attempt)).encode(), f"{attempt.place}.json")
    if log is not None:
        objects.put_bytes(log, f"{attempt.place}.log")


def tries_of(objects: ObjectStore, stage: str, key: str) -> list[Try]:
    """Return the tries of a stage, oldest first; one that never ended and has a successor counts as lost.

    Raises:
        DamagedStateError: A record cannot be read.
        StoreError: The store cannot be reached.
    """
    found = []
    for name in sorted(objects.list(f"{_FOLDER}/{stage}/{key}/")):
        data = objects.get_bytes(name) if name.endswith(".json") else None
        if data is not None:
            found.append(
                parse_state(data, Try, where=f"{objects.uri}/{name}", cure="delete it; it only tells of a try")
            )
    return [replace(one, outcome="lost") if one.outcome == "running" and one is not found[-1] else one for one in found]


def log_of(objects: ObjectStore, attempt: Try) -> str:
    """Return the stored output of a try; empty if there is none.

    Raises:
        StoreError: The store cannot be reached.
    """
    return (objects.get_bytes(f"{attempt.place}.log") or b"").decode(errors="replace")


def begin_line(attempt: Try) -> str:
    """Return the line before the output of a try in the log of its pod."""
    return f"ngrpo: {attempt.stage}: try {attempt.number} of {attempt.of} begins"


def end_line(attempt: Try, then: str = "") -> str:
    """Return the line that goes after it, with what happens next."""
    said = f": {attempt.error}" if attempt.error else ""
    return f"ngrpo: {attempt.stage}: try {attempt.number} of {attempt.of} {attempt.outcome}{said}{then}"


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the stage itself from the log of its pod: Kubeflow's launcher prints before, between and after them.

    Args:
        lines: The whole log. Without any try in it, because the pod failed earlier, it is returned unchanged.
    """
    before: list[str] = []
    found, inside = False, False
    for line in lines:
        if _BEGINS.match(line):
            found = inside = True
        elif inside and _ENDS.match(line):
            inside = False
        elif inside:
            yield line
        elif not found:
            before.append(line)
    if not found:
        yield from before
