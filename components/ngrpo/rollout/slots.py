"""Mixing inside a serving engine: the settings of its running requests and the records of their responses, in tensors.

A serving engine decodes whichever requests its scheduler picks, computes some of their tokens again after a preemption, and may be
ahead of what the host knows. So everything is keyed by a request's slot and by the position in its response, and every method
works on any set of rows without asking the device for a value. Nothing here knows the engine.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class RequestSettings:
    """How one request is sampled and mixed.

    Attributes:
        name: What its record is asked for by; unique among the requests whose records were not taken yet.
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
    """What was decided for one response.

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
    from ngrpo.rollout.fused import launch  # imports Triton, which only a machine with a GPU need have

    return launch


class MixingSlots:
    """Decides and mixes for the requests of a serving engine. A slot is held from `add` until the record was taken."""

    def __init__(self, device: torch.device, slots: int, *, fused: bool | None = None):
        """Make room.

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
        self._settings: dict[int, RequestSettings] = {}
        self._finished: dict[str, int] = {}  # slot by name
        self._records: dict[str, SlotRecord] = {}  # moved to the host, by name
        self._neighbors = torch.empty(0, 0, dtype=torch.long, device=device)
        self._eligible = torch.empty(0, dtype=torch.bool, device=device)
        self._end_marker: EndMarker | None = None
        self._strategies: dict[int, Strategy] = {}
        self._anchored = torch.empty(0, dtype=torch.int32, device=device)
        self._in_use: dict[int, Strategy] = {}  # by the running requests that mix
        self._nucleus = False

    @property
    def mixing(self) -> bool:
        """Whether any running request mixes."""
        return bool(self._in_use)

    def add_strategy(self, number: int, strategy: Strategy) -> None:
        """Make a strategy known, by the number that requests name it with."""
        self._strategies[number] = strategy
        if self._kernels is not None:
            self._anchored = anchored(self._strategies, self._tables.seed.device)

    def set_index(self, neighbors: Tensor, eligible: Tensor, end_marker: EndMarker | None) -> None:
        """Use another neighbor index. The engine sees to it that no request is running.

        Args:
            neighbors: See `Mixer`.
            eligible: See `Mixer`.
            end_marker: See `Mixer`.
        """
        # Requests whose end this has not been told of have ended all the same. The tables start anew: the index may be narrower.
        self.finish(list(self._slot))
        self._to_host()
        device = self._tables.seed.device
        self._tables = Tables.empty(self._tables.slots, 1, 1, device)
        self._neighbors, self._eligible = neighbors.to(device), eligible.to(device)
        self._end_marker = None if end_marker is None else end_marker.to(device)

    def add(self, request: str, settings: RequestSettings) -> int:
        """Give a request a slot and return it; a request that comes back from a preemption keeps the one it has."""
        if request in self._slot:
            return self._slot[request]
        if not self._free:
            self._to_host()
        tables = self._tables
        slots = tables.slots
        if not self._free:
            self._free = list(range(slots, 2 * slots))
            slots *= 2
        length, width = max(tables.length, settings.max_tokens), max(tables.width, self._width(settings))
        if (slots, length, width) != (tables.slots, tables.length, tables.width):
            tables = self._tables = tables.grown(slots, length, width)
        slot = self._slot[request] = self._free.pop()
        self._settings[slot] = settings
        for name in ("seed", "temperature", "top_p", "rate"):
            getattr(tables, name)[slot] = getattr(settings, name)
        tables.strategy[slot] = -1 if settings.strategy is None else settings.strategy
        tables.mixed[slot] = False
        self._note_running()
        return slot

    def slot(self, request: str) -> int:
        """Return the slot of a running request, -1 for a request that is none of ours."""
        return self._slot.get(request, -1)

    def finish(self, requests: Iterable[str]) -> None:
        """Note that requests have ended, by themselves or by an abort; their records stay until they are taken."""
        for request in requests:
            slot = self._slot.pop(request, None)
            if slot is not None:
                self._finished[self._settings[slot].name] = slot
        self._note_running()

    def take(self, names: Sequence[str]) -> list[SlotRecord]:
        """Return the records of requests that have ended, on the host, and forget them.

        Raises:
            KeyError: There is no such request.
        """
        wanted = set(names)
        # The engine may not have been told of the last requests' end yet: it says so when it schedules the next step.
        self.finish([request for request, slot in self._slot.items() if self._settings[slot].name in wanted])
        self._to_host()
        return [self._records.pop(name) for name in names]

    def decide(self, logits: Tensor, slots: Tensor, positions: Tensor, emits: Tensor) -> Tensor:
        """Decide the next token of each row, and remember it.

        Args:
            logits: `[B, V]`, as the model gives them.
            slots: int64 `[B]`, -1 for rows of other requests, whose token means nothing.
            positions: int64 `[B]`, positions of the next tokens in their responses.
            emits: bool `[B]`, whether a row emits its token; a prompt or a preempted response in the middle of its
                computation does not.

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
        scaled_logits = scale_logits(logits, tables.temperature[slots][:, None])
        nucleus = keep_nucleus(scaled_logits, tables.top_p[slots]) if self._nucleus else scaled_logits
        tokens = sample_tokens(nucleus, seeds, positions)
        emits = emits & (slots >= 0) & (positions >= 0) & (positions < tables.length)
        rows = torch.where(emits, slots, tables.slots)
        positions = positions.clamp(0, tables.length - 1)
        if self.mixing:
            step = Step(scaled_logits, tokens, seeds, positions, self._neighbors)
            mixed, tokens = self._mix_step(step, slots, rows, emits)
            tables.mixed[rows, positions] = mixed
        tables.logprobs[rows, positions] = token_logprobs(scaled_logits, tokens)
        return tokens

    def _mix_step(self, step: Step, slots: Tensor, rows: Tensor, emits: Tensor) -> tuple[Tensor, Tensor]:
        """Decide which rows are mixed, remember how, and return them, bool `[B]`, with the tokens of all, int64 `[B]`."""
        tables, positions, marker = self._tables, step.positions, self._end_marker
        # Kept by position: a step that is decided twice, as after a preemption, moves the marker on once.
        progress = tables.progress[rows, positions].long()
        active = emits if marker is None else emits & ~marker.passed(progress)
        mixed, tokens = torch.zeros_like(emits), step.sampled
        for number, strategy in self._in_use.items():
            decided = mixed_step(
                strategy,
                step,
                rate=tables.rate[slots],
                active=active & (tables.strategy[slots] == number),
                eligible=self._eligible,
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
        """Lay the mixtures over the embeddings of a batch.

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
        if kernels is None:
            embeddings[rows] = self.mix(embed, embeddings[rows], slots, positions)
        else:
            kernels.mix(self._tables, self._mixing(), embed, embeddings, slots, positions, rows=rows, matrix=matrix)

    @property
    def fused(self) -> bool:
        """Whether steps go through kernels where they serve."""
        return self._kernels is not None

    def _serving_kernels(self) -> ModuleType | None:
        """Return the kernels where they serve all that runs: a batch is decided by them or by torch, as a whole."""
        return self._kernels if all(serves(strategy) for strategy in self._in_use.values()) else None

    def _mixing(self) -> Mixing:
        return Mixing(self._anchored, self._neighbors, self._eligible, self._end_marker)

    def _width(self, settings: RequestSettings) -> int:
        return 1 if settings.strategy is None else self._strategies[settings.strategy].k

    def _records_candidates(self, settings: RequestSettings) -> bool:
        return settings.strategy is not None and self._strategies[settings.strategy].records_candidates

    def _note_running(self) -> None:
        running = [self._settings[slot] for slot in self._slot.values()]
        numbers = {settings.strategy for settings in running if settings.mixes}
        self._in_use = {number: strategy for number, strategy in self._strategies.items() if number in numbers}
        self._nucleus = any(settings.top_p < 1 for settings in running)

    def _to_host(self) -> None:
        """Move the records of finished requests off the device, all at once, and free their slots."""
        if not self._finished:
            return
        tables = self._tables
        rows = torch.tensor(list(self._finished.values()), device=tables.seed.device)
        recorded = {slot for slot in self._finished.values() if self._records_candidates(self._settings[slot])}
        mixed, weights, logprobs = tables.mixed[rows].cpu(), tables.weights[rows].cpu(), tables.logprobs[rows].cpu()
        candidates = tables.candidates[rows].cpu() if recorded else None
        for row, (name, slot) in enumerate(self._finished.items()):
            settings = self._settings.pop(slot)
            length, width = settings.max_tokens, self._width(settings)
            self._records[name] = SlotRecord(
                mixed[row, :length].clone(),
                weights[row, :length, :width].clone(),
                logprobs[row, :length].clone(),
                None if candidates is None or slot not in recorded else candidates[row, :length, :width].clone(),
            )
            self._free.append(slot)
        self._finished.clear()
