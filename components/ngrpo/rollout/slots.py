"""Mixing inside a serving engine: the settings of its running requests and the records of their responses, in tensors.

A serving engine decodes whichever requests its scheduler picks, recomputes some of their tokens after a preemption, and may run
ahead of the host. So everything is keyed by a request's slot and the position in its response, and every method works on any set
of rows without waiting for the device. Nothing here depends on the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.mixer import mixed_step
from ngrpo.mixing.neighbor_mixing import scale_logits
from ngrpo.mixing.strategy import Step, Strategy
from ngrpo.rollout.fused import Mixing, anchored, serves
from ngrpo.rollout.request_tables import Tables
from ngrpo.rollout.sampling import keep_nucleus, sample_tokens, token_logprobs
from ngrpo.rollout.transfers import ToHost, to_device


@dataclass(frozen=True)
class RequestSettings:
    """How one request is sampled and mixed.

    Attributes:
        name: Name to take its record by; unique among the requests whose records were not taken yet.
        seed: Below 2**63.
        temperature: tau of equations 2-3, above 0.
        top_p: Nucleus; 1 is the full distribution.
        max_tokens: Longest response.
        rate: Gate rate rho; 0 switches mixing off.
        strategy: Number that the strategy was added under (`MixingSlots.add_strategy`); none for requests that do not mix.
    """

    name: str
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    rate: float = 0.0
    strategy: int | None = None

    @property
    def mixes(self) -> bool:
        """Whether any step can be mixed."""
        return self.strategy is not None and self.rate > 0


@dataclass(frozen=True)
class SlotRecord:
    """The decisions for one response.

    Attributes:
        mixed: bool `[max_tokens]`.
        weights: float32 `[max_tokens, k]`.
        logprobs: float32 `[max_tokens]`, see `Rollout.logprobs`.
        candidates: int32 `[max_tokens, k]`; none where they need not be recorded (`Strategy.records_candidates`).
    """

    mixed: Tensor
    weights: Tensor
    logprobs: Tensor
    candidates: Tensor | None = None


def _kernels() -> ModuleType:
    from ngrpo.rollout.fused import launch  # imports Triton, which only machines with a GPU need

    return launch


class MixingSlots:
    """Decides and mixes for the requests of a serving engine. A slot is held from `add` until its record is taken."""

    def __init__(self, device: torch.device, slots: int, *, fused: bool | None = None):
        """Allocate the tables.

        Args:
            device: Device of the model.
            slots: Requests expected at a time; grows when there are more.
            fused: Whether steps go through the kernels of `ngrpo.rollout.fused` while they serve every strategy in use; by default on
                CUDA.
        """
        self._kernels = _kernels() if (device.type == "cuda" if fused is None else fused) else None
        self._tables = Tables.empty(slots, 1, 1, device)
        self._free = list(range(slots))
        self._slot: dict[str, int] = {}  # of each running request, by the engine's id
        self._request: dict[str, str] = {}  # the engine's id of each running request, by name
        self._settings: dict[int, RequestSettings] = {}
        self._finished: dict[str, int] = {}  # slot by name
        self._leaving: list[tuple[dict[str, RequestSettings], ToHost]] = []  # records on their way to the host
        self._records: dict[str, SlotRecord] = {}  # on the host, by name
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._neighbors = torch.empty(0, 0, dtype=torch.long, device=device)
        self._eligible = torch.empty(0, dtype=torch.bool, device=device)
        self._end_marker: EndMarker | None = None
        self._strategies: dict[int, Strategy] = {}
        self._anchored = torch.empty(0, dtype=torch.int32, device=device)
        self._in_use: dict[int, Strategy] = {}  # by the running requests that mix
        self._mixing_requests: Counter[int] = Counter()  # running, by the number of their strategy
        self._nucleus_requests = 0  # running

    @property
    def mixing(self) -> bool:
        """Whether any running request mixes."""
        return bool(self._in_use)

    @property
    def _nucleus(self) -> bool:
        return self._nucleus_requests > 0

    def add_strategy(self, number: int, strategy: Strategy) -> None:
        """Register a strategy under the number that requests name."""
        self._strategies[number] = strategy
        if self._kernels is not None:
            self._anchored = anchored(self._strategies, self._tables.seed.device)

    def set_index(self, neighbors: Tensor, eligible: Tensor, end_marker: EndMarker | None) -> None:
        """Use another neighbor index. The caller makes sure that no request is running.

        Args:
            neighbors: See `Mixer`.
            eligible: See `Mixer`.
            end_marker: See `Mixer`.
        """
        # No request runs any more, reported or not. The tables are rebuilt, because the index may be narrower.
        self.finish(list(self._slot))
        self._to_host()
        device = self._tables.seed.device
        self._tables = Tables.empty(self._tables.slots, 1, 1, device)
        self._neighbors, self._eligible = neighbors.to(device), eligible.to(device)
        self._end_marker = None if end_marker is None else end_marker.to(device)

    def add(self, request: str, settings: RequestSettings) -> int:
        """Give a request a slot and return it; see `join`."""
        return self.join([(request, settings)])[0]

    def join(self, requests: Sequence[tuple[str, RequestSettings]]) -> list[int]:
        """Give requests slots and return them; a request that returns from a preemption keeps its slot.

        Settings go to the device in one copy, whatever the number of requests, and nothing waits for it.
        """
        new = dict([(request, settings) for request, settings in requests if request not in self._slot])
        if new:
            self._make_room(new.values())
            for request, settings in new.items():
                slot = self._slot[request] = self._free.pop()
                self._request[settings.name], self._settings[slot] = request, settings
                self._note_running(settings, 1)
            self._write([self._slot[request] for request in new], list(new.values()))
        return [self._slot[request] for request, _ in requests]

    def _make_room(self, settings: Iterable[RequestSettings]) -> None:
        """Make the tables large enough for requests that join."""
        joining = list(settings)
        tables = self._tables
        slots = tables.slots
        if len(self._free) < len(joining):
            self._to_host()
        while len(self._free) < len(joining):
            self._free += range(slots, 2 * slots)
            slots *= 2
        length = max(tables.length, *(each.max_tokens for each in joining))
        width = max(tables.width, *map(self._width, joining))
        if (slots, length, width) != (tables.slots, tables.length, tables.width):
            self._tables = tables.grown(slots, length, width)

    def _write(self, slots: list[int], settings: list[RequestSettings]) -> None:
        """Write the settings of requests that join, in one copy: whole numbers in its first rows, the bits of the others below."""
        tables = self._tables
        whole = [slots, [each.seed for each in settings], [_number(each) for each in settings]]
        real = [[getattr(each, name) for each in settings] for name in ("temperature", "top_p", "rate")]
        packed = torch.cat(
            [torch.tensor(whole, dtype=torch.long), torch.tensor(real, dtype=torch.float64).view(torch.long)]
        )
        rows, seeds, strategies, *bits = to_device(packed, tables.seed.device)
        temperatures, top_ps, rates = (values.view(torch.float64) for values in bits)
        tables.seed[rows], tables.strategy[rows] = seeds, strategies
        tables.temperature[rows], tables.top_p[rows], tables.rate[rows] = temperatures.float(), top_ps.float(), rates
        tables.mixed.index_fill_(0, rows, value=False)

    def slot(self, request: str) -> int:
        """Return the slot of a running request, -1 for an unknown request."""
        return self._slot.get(request, -1)

    def finish(self, requests: Iterable[str]) -> None:
        """Mark requests as ended, completed or aborted; their records stay until they are taken."""
        for request in requests:
            slot = self._slot.pop(request, None)
            if slot is not None:
                settings = self._settings[slot]
                del self._request[settings.name]
                self._finished[settings.name] = slot
                self._note_running(settings, -1)

    def take(self, names: Sequence[str]) -> list[SlotRecord]:
        """Return the records of requests that have ended, on the host, and forget them.

        Raises:
            KeyError: There is no such request.
        """
        # The engine reports the end of the last requests only when it schedules the next step, which may not come.
        self.finish([self._request[name] for name in names if name in self._request])
        self._to_host()
        for settings, copies in self._leaving:
            self._records |= self._cut(settings, copies.wait())
        self._leaving.clear()
        return [self._records.pop(name) for name in names]

    def decide(
        self, logits: Tensor, slots: Tensor, positions: Tensor, emits: Tensor, *, overwrite: bool = False
    ) -> Tensor:
        """Decide the next token of each row, and record it.

        Args:
            logits: `[B, V]`, as the model gives them.
            slots: int64 `[B]`, -1 for rows of other requests, whose token is meaningless.
            positions: int64 `[B]`, positions of the next tokens in their responses.
            emits: bool `[B]`, whether a row emits its token; a prompt or a preempted response in the middle of its
                computation does not.
            overwrite: Whether the logits may be changed: nobody else reads them.

        Returns:
            int64 `[B]`.
        """
        tables = self._tables
        kernels = self._serving_kernels()
        if kernels is not None:
            mixing = self._mixing() if self.mixing else None
            decided: Tensor = kernels.decide(
                tables, logits, slots, positions, emits, mixing=mixing, nucleus=self._nucleus
            )
            return decided
        seeds = tables.seed[slots]
        scaled_logits = scale_logits(logits, tables.temperature[slots][:, None], overwrite=overwrite)
        nucleus = keep_nucleus(scaled_logits, tables.top_p[slots]) if self._nucleus else scaled_logits
        tokens = sample_tokens(nucleus, seeds, positions)
        emits = emits & (slots >= 0) & (positions >= 0) & (positions < tables.length)
        rows = torch.where(emits, slots, tables.slots)
        positions = positions.clamp(0, tables.length - 1)
        if self.mixing:
            step = Step(scaled_logits, tokens, seeds, positions, self._neighbors, self._eligible)
            mixed, tokens = self._mix_step(step, slots, rows, emits)
            tables.mixed[rows, positions] = mixed
        tables.logprobs[rows, positions] = token_logprobs(scaled_logits, tokens)
        return tokens

    def _mix_step(self, step: Step, slots: Tensor, rows: Tensor, emits: Tensor) -> tuple[Tensor, Tensor]:
        """Decide which rows are mixed, record the mixtures, and return the mixed rows, bool `[B]`, and all tokens, int64 `[B]`."""
        tables, positions, marker = self._tables, step.positions, self._end_marker
        # Stored by position: a step decided twice, as after a preemption, advances the marker once.
        progress = tables.progress[rows, positions].long()
        active = emits if marker is None else emits & ~marker.passed(progress)
        mixed, tokens = torch.zeros_like(emits), step.sampled
        for number, strategy in self._in_use.items():
            decided = mixed_step(
                strategy,
                step,
                rate=tables.rate[slots],
                active=active & (tables.strategy[slots] == number),
            )
            mixed, tokens = mixed | decided.mixed, torch.where(decided.mixed, decided.tokens, tokens)
            into = torch.where(decided.mixed, rows, tables.slots)
            tables.candidates[into, positions, : strategy.k] = decided.candidates.int()
            tables.weights[into, positions, : strategy.k] = decided.weights
        if marker is not None:
            tables.progress[rows, positions + 1] = marker.advance(progress, tokens).short()
        return mixed, tokens

    def mix(self, embed: Callable[[Tensor], Tensor], embeddings: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the input embeddings of tokens of responses: mixtures where their steps were mixed.

        Args:
            embed: The model's embedding, int64 `[N]` to `[N, d]`; called once, by every tensor-parallel rank alike.
            embeddings: `[T, d]`, embeddings of the tokens themselves.
            slots: int64 `[T]`, -1 for tokens of other requests.
            positions: int64 `[T]`, positions in their responses.
        """
        kernels = self._serving_kernels()
        if kernels is not None:
            embeddings = embeddings.clone()
            kernels.mix(self._tables, self._mixing(), embed, embeddings, slots, positions)
            return embeddings
        tables = self._tables
        mixed = (slots >= 0) & tables.mixed[slots, positions]
        candidates, weights = tables.candidates[slots, positions].long(), tables.weights[slots, positions]
        vectors = embed(candidates.flatten()).view(*candidates.shape, -1)
        for number, strategy in self._in_use.items():
            mixtures = strategy.embed(vectors[:, : strategy.k], weights[:, : strategy.k], tables.seed[slots], positions)
            its_own = mixed & (tables.strategy[slots] == number)
            embeddings = torch.where(its_own[:, None], mixtures, embeddings)
        return embeddings

    def mix_in_place(
        self,
        embed: Callable[[Tensor], Tensor],
        embeddings: Tensor,
        rows: Tensor,
        slots: Tensor,
        positions: Tensor,
        *,
        matrix: Tensor | None = None,
    ) -> None:
        """Write the mixtures into the embeddings of a batch.

        Args:
            embed: See `mix`.
            embeddings: `[n, d]`, of all tokens of the batch; written.
            rows: int64 `[T]`, where the tokens of responses stand in `embeddings`.
            slots: See `mix`, as is `positions`.
            positions: See `slots`.
            matrix: `[V, d]` on this device, whose rows are what `embed` returns; none if there is no such thing, as where ranks share
                the vocabulary.
        """
        kernels = self._serving_kernels()
        if kernels is None and embeddings.device.type == "cpu":
            # The rows that are mixed alone, a tenth of them; on a device, which they are is not known without waiting for it.
            which = ((slots >= 0) & self._tables.mixed[slots, positions]).nonzero()[:, 0]
            if len(which):
                rows, slots, positions = rows[which], slots[which], positions[which]
                embeddings[rows] = self.mix(embed, embeddings[rows], slots, positions)
        elif kernels is None:
            embeddings[rows] = self.mix(embed, embeddings[rows], slots, positions)
        else:
            kernels.mix(self._tables, self._mixing(), embed, embeddings, slots, positions, rows=rows, matrix=matrix)

    @property
    def fused(self) -> bool:
        """Whether steps use the kernels where these support them."""
        return self._kernels is not None

    def _serving_kernels(self) -> ModuleType | None:
        """Return the kernels if they support every running request: a whole batch is decided either by them or by torch."""
        return self._kernels if all(serves(strategy) for strategy in self._in_use.values()) else None

    def _mixing(self) -> Mixing:
        return Mixing(self._anchored, self._neighbors, self._eligible, self._end_marker)

    def _width(self, settings: RequestSettings) -> int:
        return 1 if settings.strategy is None else self._strategies[settings.strategy].k

    def _records_candidates(self, settings: RequestSettings) -> bool:
        return settings.strategy is not None and self._strategies[settings.strategy].records_candidates

    def _note_running(self, settings: RequestSettings, change: int) -> None:
        """Count a request that joins or has ended."""
        self._nucleus_requests += change if settings.top_p < 1 else 0
        if settings.strategy is not None and settings.rate > 0:
            self._mixing_requests[settings.strategy] += change
            if self._mixing_requests[settings.strategy]:
                self._in_use[settings.strategy] = self._strategies[settings.strategy]
            else:
                del self._in_use[settings.strategy]

    def _to_host(self) -> None:
        """Start copying the records of finished requests to the host, all at once, and free their slots; does not wait."""
        if not self._finished:
            return
        tables = self._tables
        settings = {name: self._settings.pop(slot) for name, slot in self._finished.items()}
        rows = to_device(torch.tensor(list(self._finished.values())), tables.seed.device)
        leaving = [tables.mixed[rows], tables.weights[rows], tables.logprobs[rows]]
        if any(map(self._records_candidates, settings.values())):
            leaving.append(tables.candidates[rows])
        # The gathered rows are copies: a new owner of a slot overwrites only the tables.
        self._leaving.append((settings, ToHost(leaving, self._copies)))
        self._free += self._finished.values()
        self._finished.clear()

    def _cut(self, settings: dict[str, RequestSettings], host: Sequence[Tensor]) -> dict[str, SlotRecord]:
        """Return the record of each request, by name, from the rows that left together."""
        records = {}
        for row, (name, each) in enumerate(settings.items()):
            length, width = each.max_tokens, self._width(each)
            records[name] = SlotRecord(
                host[0][row, :length].clone(),
                host[1][row, :length, :width].clone(),
                host[2][row, :length].clone(),
                host[3][row, :length, :width].clone() if self._records_candidates(each) else None,
            )
        return records


def _number(settings: RequestSettings) -> int:
    return -1 if settings.strategy is None else settings.strategy
