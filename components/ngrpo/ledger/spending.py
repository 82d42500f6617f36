"""Cost records of the processes of a stage, kept beside the artifacts: `spent/<stage>/<key>/<name>.json` below the artifact store.

They are not part of an artifact, because equal results must have equal digests. A process writes its record when it starts, once a minute,
and when it ends. So a killed process is counted too, up to its last full minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ngrpo.storage.state import DamagedStateError, parse_state

if TYPE_CHECKING:
    from ngrpo.storage.objects import ObjectStore

_FOLDER = "spent"
_CURE = "delete it; it only records the cost of a result"
Quantity = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Spent:
    """Cost record of one process that worked on a result."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    stage: str
    key: str
    """Key of the result."""
    name: Annotated[str, Field(pattern=r"^[0-9TZ]+-[A-Za-z0-9.-]+$")]
    """Start time, machine and process id: names sort by time."""
    run: str
    """Run that the process belonged to: name of a local run, or id of a pipeline run."""
    shape: str
    """See `ngrpo.ledger.shapes.shape`."""
    hardware: str
    """Hardware that it ran on, in words."""
    started: str
    """Start time, ISO 8601, UTC."""
    rank: int = 0
    """Rank of its node, if there are several."""
    role: Literal["work", "follow"] = "work"
    """`follow`: it only waited for the nodes of a job."""
    outcome: Literal["running", "published", "ended", "failed"] = "running"
    """`published`: it stored the result. `ended`: it finished its part, and another process stored the result."""
    seconds: Quantity = 0.0
    processor_seconds: Quantity = 0.0
    gpus: Annotated[int, Field(ge=0)] = 0
    joules: float | None = None
    """Energy of its GPUs; None if it is not available."""

    @property
    def place(self) -> str:
        """Key of its object in the store."""
        return f"{_FOLDER}/{self.stage}/{self.key}/{self.name}.json"

    @property
    def span(self) -> tuple[float, float]:
        """Start and end, in seconds since 1970."""
        began = datetime.fromisoformat(self.started).timestamp()
        return began, began + self.seconds


@dataclass(frozen=True)
class Cost:
    """Cost of one or more results, summed over all processes."""

    seconds: float = 0.0
    """Wall time during which at least one process worked."""
    processor_seconds: float = 0.0
    gpu_seconds: float = 0.0
    """Number of GPUs of each process times its wall time."""
    joules: float | None = None
    """Energy of the GPUs; None without GPUs, or if it is unknown for one of the processes."""
    tries: int = 1

    @property
    def gpu_hours(self) -> float:
        """GPU-hours."""
        return self.gpu_seconds / 3600

    @property
    def processor_hours(self) -> float:
        """Hours of processor time."""
        return self.processor_seconds / 3600

    @property
    def kilowatt_hours(self) -> float | None:
        """Energy of the GPUs in kWh."""
        return None if self.joules is None else self.joules / 3.6e6


def keep(objects: ObjectStore, record: Spent) -> None:
    """Write a record.

    Raises:
        StoreError: The store cannot be reached.
    """
    objects.put_bytes(json.dumps(asdict(record)).encode(), record.place)


def records_of(objects: ObjectStore, stage: str, key: str) -> list[Spent]:
    """Return the records of all processes that worked on a result, oldest first.

    Raises:
        DamagedStateError: One cannot be read.
        StoreError: The store cannot be reached.
    """
    return _read(objects, f"{_FOLDER}/{stage}/{key}/")


def cost_of(records: Sequence[Spent]) -> Cost | None:
    """Return the cost of a stored result: that of the process that published it, and of those before it whose work it resumed.

    A damaged result is produced and published again. Processes that started before the previous publication are then not counted.

    Args:
        records: Records of the result, oldest first.

    Returns:
        None if no record is that of a publication: results of earlier versions have no records.
    """
    published = [record for record in records if record.outcome == "published"]
    if not published:
        return None
    end = published[-1].span[1]
    begin = published[-2].span[1] if len(published) > 1 else float("-inf")
    return total(record for record in records if begin <= record.span[0] <= end)


def recorded_cost(objects: ObjectStore, stage: str, key: str) -> Cost | None:
    """Return the cost of a result (`cost_of`); None if it is unknown, or if a record is damaged, which is printed to standard error.

    Raises:
        StoreError: The store cannot be reached.
    """
    try:
        return cost_of(records_of(objects, stage, key))
    except DamagedStateError as error:
        print(f"ignored: {error}", file=sys.stderr)
        return None


def total(records: Iterable[Spent]) -> Cost:
    """Return the total cost of some processes."""
    counted = list(records)
    working = [record for record in counted if record.role == "work"]
    with_gpus = [record for record in counted if record.gpus]
    told = [record.joules for record in with_gpus if record.joules is not None]
    return Cost(
        seconds=_covered([record.span for record in working]),
        processor_seconds=sum(record.processor_seconds for record in counted),
        gpu_seconds=sum(record.gpus * record.seconds for record in counted),
        joules=sum(told) if with_gpus and len(told) == len(with_gpus) else None,
        tries=sum(record.rank == 0 for record in working),
    )


def together(costs: Iterable[Cost]) -> Cost:
    """Return the total cost of several results; the energy is known only if it is known for each result that used GPUs."""
    each = list(costs)
    with_gpus = [cost for cost in each if cost.gpu_seconds]
    told = [cost.joules for cost in with_gpus if cost.joules is not None]
    return Cost(
        seconds=sum(cost.seconds for cost in each),
        processor_seconds=sum(cost.processor_seconds for cost in each),
        gpu_seconds=sum(cost.gpu_seconds for cost in each),
        joules=sum(told) if with_gpus and len(told) == len(with_gpus) else None,
        tries=sum(cost.tries for cost in each),
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the spans lasts, so that the time of concurrent processes is counted once."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def _read(objects: ObjectStore, folder: str) -> list[Spent]:
    found = []
    for name in sorted(objects.list(folder)):
        data = objects.get_bytes(name)
        if data is not None:
            found.append(parse_state(data, Spent, where=f"{objects.uri}/{name}", cure=_CURE))
    return found
