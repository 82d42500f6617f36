"""Samples of a benchmark: generated and stored in parts, so that no sample is generated twice, and graded afterwards.

Only the model's text is stored. Verdicts are computed from it and the gold answers (`ngrpo.evaluation.verdicts.graded`) whenever samples
are read. So a change of the grader generates nothing, and raising the number of samples keeps the first ones.

The name of a part is the digest of its prefix and content, which is checked on reading: a part that was changed or moved is ignored.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from ngrpo.errors import StoreError
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.verdicts import GENERATED
from ngrpo.mixing.mixer import Mixer
from ngrpo.rollout.engine import ContinuousEngine, Rollout, RolloutEngine, Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.storage.state import write_whole

_PART = re.compile(r"[0-9a-f]{64}\.parquet")
_PARTS = 100
"""Most parts that the missing samples of a benchmark are split into. A part is one object in the store, and is lost if its process is
killed."""

Request = tuple[int, int]
"""Position of a problem in its benchmark, and a sample id."""


class SampleStore(Protocol):
    """Where samples are kept; an `ngrpo.storage.objects.ObjectStore` is one."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`."""

    def get_bytes(self, key: str) -> bytes | None:
        """Return the data stored under a key; None if there is none."""

    def put_bytes(self, data: bytes, key: str) -> bool:
        """Store data under a key atomically."""

    def delete(self, key: str) -> None:
        """Delete the data under a key, if there is any."""


class LocalSamples:
    """A `SampleStore` in a directory."""

    def __init__(self, directory: Path):
        """Use a directory; it is created when something is stored."""
        self._directory = directory

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, in order."""
        files = (path.relative_to(self._directory).as_posix() for path in self._directory.rglob("*.parquet"))
        return sorted(key for key in files if key.startswith(prefix))

    def get_bytes(self, key: str) -> bytes | None:
        """Return the data stored under a key; None if there is none.

        Raises:
            StoreError: It cannot be read; that does not mean that it is damaged.
        """
        path = self._directory / key
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); check its rights and the disk") from error

    def put_bytes(self, data: bytes, key: str) -> bool:
        """Store data under a key atomically.

        Raises:
            StoreError: It cannot be written.
        """
        write_whole(self._directory / key, data)
        return True

    def delete(self, key: str) -> None:
        """Delete the data under a key, if there is any.

        Raises:
            StoreError: It cannot be deleted.
        """
        path = self._directory / key
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be deleted ({error.strerror}); check its rights and the disk") from error


class KeptSamples:
    """The samples of one model on one benchmark: those stored, and those still missing."""

    def __init__(self, store: SampleStore, key: str, benchmark: Benchmark, samples: int):
        """Read the stored parts. Damaged parts count as missing, with a line on standard error.

        Args:
            store: Where samples are kept.
            key: Hash of everything that a sample depends on besides benchmark, problem and sample id.
            benchmark: The benchmark.
            samples: Requested samples per problem.

        Raises:
            StoreError: A part cannot be read; that does not mean that it is damaged.
        """
        self.benchmark = benchmark
        self.samples = samples
        self._store = store
        self._place = f"{key}/{benchmark.name}"
        self._rows: dict[tuple[str, int], dict[str, object]] = {}
        self._damaged: set[str] = set()
        for name in store.list(f"{self._place}/"):
            if _PART.fullmatch(name.rpartition("/")[2]):
                self._read(name)

    @property
    def missing(self) -> list[Request]:
        """The samples still to be generated, problem by problem."""
        ids = self.benchmark.ids
        return [
            (problem, sample)
            for problem in range(len(ids))
            for sample in range(self.samples)
            if (ids[problem], sample) not in self._rows
        ]

    def add(self, table: pa.Table) -> None:
        """Store generated samples; damaged parts are deleted once the last samples are stored."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        name = self._name(buffer.getvalue())
        self._store.put_bytes(buffer.getvalue(), name)
        self._damaged.discard(name)
        self._remember(table)
        if self._damaged and not self.missing:
            for damaged in self._damaged:
                self._store.delete(damaged)
            self._damaged.clear()

    def table(self) -> pa.Table:
        """Return the requested samples, problem by problem; none may be missing."""
        wanted = [(problem, sample) for problem in self.benchmark.ids for sample in range(self.samples)]
        return pa.Table.from_pylist([self._rows[key] for key in wanted], schema=GENERATED)

    def _name(self, content: bytes) -> str:
        """Return the name of a part: parts with the same prefix and content are stored once."""
        digest = hashlib.sha256(f"{self._place}\n".encode() + content)
        return f"{self._place}/{digest.hexdigest()}.parquet"

    def _read(self, name: str) -> None:
        """Read a part, unless it is damaged. If it does not match its digest, it is read once more, because the read may have failed."""
        for _ in range(2):
            data = self._store.get_bytes(name)
            if data is None:
                return
            if self._name(data) == name:
                self._remember(pq.read_table(io.BytesIO(data), schema=GENERATED))
                return
        self._damaged.add(name)
        print(f"samples {name} are damaged and will be generated again", file=sys.stderr, flush=True)

    def _remember(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._rows[row["problem_id"], row["sample_id"]] = row


@dataclass(frozen=True)
class Part:
    """Samples that are generated and stored together.

    Attributes:
        benchmark: Index of the benchmark among those measured.
        requests: Its samples to generate.
    """

    benchmark: int
    requests: Sequence[Request]


class Take(Protocol):
    """Hands out parts, each with its number."""

    def __call__(self, *, wait: bool) -> tuple[int, Part] | None:
        """Return the next part; none if no part is left or, without waiting, none is ready yet."""


def parts(benchmark: int, requests: Sequence[Request], unit: int) -> list[Part]:
    """Split the missing samples of a benchmark into parts.

    A part consists of whole units, counted from the first request. So what is missing is always whole units, which do not depend on the
    number of parts generated before, or on the number of processes.

    Args:
        benchmark: Index of the benchmark.
        requests: The missing samples.
        unit: Number of requests that stay together.
    """
    units = -(-len(requests) // unit)
    size = -(-units // _PARTS) * unit
    return [Part(benchmark, requests[start : start + size]) for start in range(0, len(requests), max(size, 1))]


@dataclass(frozen=True)
class Sampler:
    """Generates samples with one model.

    Attributes:
        engine: Generates the responses.
        tokenizer: Applies the chat template to prompts, and decodes responses.
        sampling: Settings of sampling.
        seed: Seed of the run. A sample's seed depends only on it and on benchmark, problem and sample id: two models get
            the same seeds, and raising the number of samples does not change the first ones.
        mixer: Mixes at inference; None for no mixing.
    """

    engine: RolloutEngine
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    seed: int
    mixer: Mixer | None = None

    def generate(self, benchmark: Benchmark, requests: Sequence[Request]) -> pa.Table:
        """Generate samples and return them as a table, in the order of the requests."""
        prompts, seeds = self._asked(benchmark, requests)
        return self._table(benchmark, requests, self.engine.generate(prompts, seeds, self.sampling, self.mixer))

    def tables(self, benchmarks: Sequence[Benchmark], take: Take) -> Iterator[tuple[int, pa.Table]]:
        """Generate the samples of parts, as they are handed out.

        Args:
            benchmarks: The benchmarks that the parts belong to.
            take: Hands out the next part; see `Take`.

        Yields:
            The number of a part and its samples, as soon as they are ready.
        """
        if isinstance(self.engine, ContinuousEngine):
            yield from self._interleaved(self.engine, benchmarks, take)
            return
        while (given := take(wait=True)) is not None:
            number, part = given
            yield number, self.generate(benchmarks[part.benchmark], part.requests)

    def _interleaved(
        self, engine: ContinuousEngine, benchmarks: Sequence[Benchmark], take: Take
    ) -> Iterator[tuple[int, pa.Table]]:
        under_way: dict[int, Part] = {}
        while True:
            while (given := take(wait=not under_way)) is not None:
                number, part = given
                engine.submit(
                    number, *self._asked(benchmarks[part.benchmark], part.requests), self.sampling, self.mixer
                )
                under_way[number] = part
            if not under_way:
                return
            for number, rollouts in engine.step():
                part = under_way.pop(number)
                yield number, self._table(benchmarks[part.benchmark], part.requests, rollouts)

    def _asked(self, benchmark: Benchmark, requests: Sequence[Request]) -> tuple[list[list[int]], list[int]]:
        """Return the prompt and the seed of each request."""
        problems = sorted({problem for problem, _ in requests})
        ids = self.tokenizer.apply_chat_template(
            [benchmark.prompts[problem] for problem in problems],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        prompts = dict(zip(problems, ids, strict=True))
        seeds = [
            request_seed(self.seed, benchmark.name, benchmark.ids[problem], sample) for problem, sample in requests
        ]
        return [prompts[problem] for problem, _ in requests], seeds

    def _table(self, benchmark: Benchmark, requests: Sequence[Request], rollouts: Sequence[Rollout]) -> pa.Table:
        texts = self.tokenizer.batch_decode([rollout.token_ids for rollout in rollouts], skip_special_tokens=True)
        rows = [
            {
                "problem_id": benchmark.ids[problem],
                "sample_id": sample,
                "text": text,
                "tokens": len(rollout.token_ids),
                "finish_reason": rollout.finish_reason,
            }
            for (problem, sample), text, rollout in zip(requests, texts, rollouts, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=GENERATED)
