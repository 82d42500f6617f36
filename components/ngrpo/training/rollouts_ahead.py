"""The rollout batch that is generated while training goes on with the one before: at most one, and saved with the checkpoints.

Its weights are those that the batch before it is trained from: no checkpoint holds them, so a checkpoint holds the rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ngrpo.errors import DataError
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.separate_engine import SeparateEngine

_DIRECTORY = "rollouts_ahead"
_STEP, _MADE_AT = "step", "made_at"
_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("index_version", pa.int64()),
        ("positions", pa.list_(pa.int32())),
        ("k", pa.int32()),
        ("weights", pa.list_(pa.float32())),
        ("candidates", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Request:
    """A rollout batch of one process.

    Attributes:
        step: The optimizer step that it is for: steps made before it is trained on.
        made_at: Optimizer steps in the weights that generate it.
        first: Number of its first row among those of all processes.
        prompts: Token ids of each prompt.
        seeds: One a prompt.
        mixer: What mixes, over the index of the weights that generate it; none without mixing.
    """

    step: int
    made_at: int
    first: int
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    mixer: Mixer | None


@dataclass(frozen=True)
class Arrived:
    """What was generated of a request.

    Attributes:
        rollouts: One a prompt.
        mixer: That of the request.
        made_at: That of the request.
        waited: Seconds that training has waited for it.
    """

    rollouts: list[Rollout]
    mixer: Mixer | None
    made_at: int
    waited: float


class RolloutsAhead:
    """Holds the batch that is under way, or has arrived and is not trained on yet."""

    def __init__(self) -> None:
        """Begin without one."""
        self._request: Request | None = None
        self._rollouts: list[Rollout] | None = None
        self._waited = 0.0

    def ask(self, engine: SeparateEngine, request: Request, sampling: Sampling) -> None:
        """Have a batch generated with the weights that the engine holds."""
        engine.begin(request.prompts, request.seeds, sampling, request.mixer)
        self._request, self._rollouts = request, None

    def settle(self, engine: SeparateEngine) -> None:
        """Wait until nothing is under way.

        Raises:
            EngineError: The engine failed or is gone.
        """
        if self._request is not None and self._rollouts is None:
            began = time.perf_counter()
            self._rollouts = engine.finish()
            self._waited = time.perf_counter() - began

    def take(self, step: int, first: int, prompts: Sequence[Sequence[int]]) -> Arrived | None:
        """Return the batch of a step, once it has settled; none if no batch was asked for.

        Args:
            step: See `Request`.
            first: See `Request`.
            prompts: What training is about to learn from.

        Raises:
            RuntimeError: The batch is another one.
        """
        request, rollouts = self._request, self._rollouts
        if request is None or rollouts is None:
            return None
        rows = slice(first - request.first, first - request.first + len(prompts))
        if request.step != step or [list(each) for each in request.prompts[rows]] != [list(each) for each in prompts]:
            raise RuntimeError(f"the rollouts that were made for step {request.step} are not those of step {step}")
        self._request = self._rollouts = None
        return Arrived(rollouts[rows], request.mixer, request.made_at, self._waited)

    def save(self, checkpoint: Path) -> None:
        """Write the batch into a checkpoint, once it has settled; every process its own part."""
        request, rollouts = self._request, self._rollouts
        if request is None or rollouts is None:
            return
        (checkpoint / _DIRECTORY).mkdir(parents=True, exist_ok=True)
        rows = [_row(prompt, rollout) for prompt, rollout in zip(request.prompts, rollouts, strict=True)]
        schema = _SCHEMA.with_metadata({_STEP: str(request.step), _MADE_AT: str(request.made_at)})
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, checkpoint / _DIRECTORY / f"{request.first:09d}.parquet")

    def resume(self, checkpoint: Path, mixer: Mixer | None) -> None:
        """Take the batch that a checkpoint was saved with, if there is one, of all processes: there may have been more or fewer of them.

        Args:
            checkpoint: Its directory.
            mixer: What mixed, over the index that the checkpoint holds.

        Raises:
            DataError: Its parts are not of one batch.
        """
        tables = [pq.read_table(path) for path in sorted((checkpoint / _DIRECTORY).glob("*.parquet"))]
        if not tables:
            return
        told = {tuple(int(table.schema.metadata[name.encode()]) for name in (_STEP, _MADE_AT)) for table in tables}
        if len(told) > 1:
            raise DataError(f"{checkpoint / _DIRECTORY}: parts of several batches; remove the checkpoint and run again")
        ((step, made_at),) = told
        rows = [row for table in tables for row in table.to_pylist()]
        self._rollouts = [_rollout(row) for row in rows]
        seeds = [row["seed"] for row in rows]
        self._request = Request(step, made_at, 0, [row["prompt"] for row in rows], seeds, mixer)


def _row(prompt: Sequence[int], rollout: Rollout) -> dict[str, Any]:
    records = rollout.records
    return {
        "prompt": list(prompt),
        "tokens": rollout.token_ids,
        "logprobs": rollout.logprobs,
        "finish_reason": rollout.finish_reason,
        "seed": records.seed,
        "index_version": records.index_version,
        "positions": records.positions.numpy(),
        "k": records.weights.shape[1],
        "weights": records.weights.numpy().ravel(),
        "candidates": None if records.candidates is None else records.candidates.numpy().astype(np.int32).ravel(),
    }


def _rollout(row: dict[str, Any]) -> Rollout:
    k, candidates = row["k"], row["candidates"]
    records = RolloutRecords(
        torch.tensor(row["positions"], dtype=torch.long),
        torch.tensor(row["weights"], dtype=torch.float32).view(-1, k),
        row["seed"],
        row["index_version"],
        None if candidates is None else torch.tensor(candidates, dtype=torch.int32).view(-1, k),
    )
    return Rollout(row["tokens"], row["logprobs"], row["finish_reason"], records)
