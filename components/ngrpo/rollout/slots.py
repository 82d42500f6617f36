"""Mixing inside a serving engine: the settings of its running requests and the records of their responses, in tensors.

A serving engine decodes whichever requests its scheduler picks, computes some of their tokens again after a preemption, and may be
ahead of what the host knows. So everything is keyed by a request's slot and by the position in its response, and every method
works on any set of rows without asking the device for a value. Nothing here knows the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import add_noise, anchors, candidate_sets, gate, mix, mixing_weights, scale_logits
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
        k: Size of the candidate set.
        noise_std: Above 0, gated steps get noise instead of neighbors (strategy `gaussian`, with `k = 1`).
    """

    name: str
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    rate: float = 0.0
    k: int = 1
    noise_std: float = 0.0


@dataclass(frozen=True)
class SlotRecord:
    """What was decided for one response.

    Attributes:
        mixed: bool `[max_tokens]`.
        weights: float32 `[max_tokens, k]`.
        logprobs: float32 `[max_tokens]`, see `Rollout.logprobs`.
    """

    mixed: Tensor
    weights: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class _Tables:
    """One row a slot, and a last one that takes what nobody asked for."""

    seed: Tensor  # int64 [S]
    temperature: Tensor  # float32 [S]
    top_p: Tensor  # float32 [S]
    rate: Tensor  # float64 [S], compared with float64 uniform numbers
    k: Tensor  # int64 [S]
    noise_std: Tensor  # float32 [S]
    ended: Tensor  # bool [S], past the end marker
    tokens: Tensor  # int32 [S, L]
    mixed: Tensor  # bool [S, L]
    weights: Tensor  # float32 [S, L, K]
    logprobs: Tensor  # float32 [S, L]

    @classmethod
    def empty(cls, slots: int, length: int, width: int, device: torch.device) -> _Tables:
        rows = slots + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        return cls(
            seed=zeros(dtype=torch.long),
            temperature=zeros() + 1.0,
            top_p=zeros() + 1.0,
            rate=zeros(dtype=torch.float64),
            k=zeros(dtype=torch.long) + 1,
            noise_std=zeros(),
            ended=zeros(dtype=torch.bool),
            tokens=zeros(length, dtype=torch.int32),
            mixed=zeros(length, dtype=torch.bool),
            weights=zeros(length, width),
            logprobs=zeros(length),
        )

    @property
    def slots(self) -> int:
        return self.seed.shape[0] - 1

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    @property
    def width(self) -> int:
        return self.weights.shape[2]

    def grown(self, slots: int, length: int, width: int) -> _Tables:
        larger = _Tables.empty(slots, length, width, self.seed.device)
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(larger, field.name)
            new[tuple(slice(size) for size in (self.slots, *old.shape[1:]))] = old[:-1]
        return larger


class MixingSlots:
    """Decides and mixes for the requests of a serving engine. A slot is held from `add` until the record was taken."""

    def __init__(self, device: torch.device, slots: int):
        """Make room.

        Args:
            device: Device of the model.
            slots: Requests expected at a time; grows when there are more.
        """
        self._tables = _Tables.empty(slots, 1, 1, device)
        self._free = list(range(slots))
        self._slot: dict[str, int] = {}  # of each running request, by the engine's id
        self._settings: dict[int, RequestSettings] = {}
        self._finished: dict[str, int] = {}  # slot by name
        self._records: dict[str, SlotRecord] = {}  # moved to the host, by name
        self._neighbors = torch.empty(0, 0, dtype=torch.long, device=device)
        self._eligible = torch.empty(0, dtype=torch.bool, device=device)
        self._end_marker: tuple[int, ...] = ()
        self.mixing = False
        """Whether any running request mixes."""
        self._noisy = False
        self._nucleus = False

    def set_index(self, neighbors: Tensor, eligible: Tensor, end_marker: Sequence[int]) -> None:
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
        self._tables = _Tables.empty(self._tables.slots, 1, 1, device)
        self._neighbors, self._eligible = neighbors.to(device), eligible.to(device)
        self._end_marker = tuple(end_marker)

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
        length, width = max(tables.length, settings.max_tokens), max(tables.width, settings.k)
        if (slots, length, width) != (tables.slots, tables.length, tables.width):
            tables = self._tables = tables.grown(slots, length, width)
        slot = self._slot[request] = self._free.pop()
        self._settings[slot] = settings
        for name in ("seed", "temperature", "top_p", "rate", "k", "noise_std"):
            getattr(tables, name)[slot] = getattr(settings, name)
        tables.ended[slot] = False
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
        seeds = tables.seed[slots]
        scaled_logits = scale_logits(logits, tables.temperature[slots][:, None])
        nucleus = keep_nucleus(scaled_logits, tables.top_p[slots]) if self._nucleus else scaled_logits
        tokens = sample_tokens(nucleus, seeds, positions)
        emits = emits & (slots >= 0) & (positions >= 0) & (positions < tables.length)
        rows = torch.where(emits, slots, tables.slots)
        positions = positions.clamp(0, tables.length - 1)
        if self.mixing:
            noisy = tables.noise_std[slots] > 0
            anchor_ids = torch.where(noisy, tokens, anchors(scaled_logits))
            mixed = (
                gate(seeds, positions, tables.rate[slots]) & self._eligible[anchor_ids] & ~tables.ended[rows] & emits
            )
            tokens = torch.where(mixed, anchor_ids, tokens)
            candidates = self._candidates(anchor_ids)
            tables.mixed[rows, positions] = mixed
            tables.weights[rows, positions] = mixing_weights(scaled_logits, candidates, tables.k[slots])
        tables.tokens[rows, positions] = tokens.int()
        tables.logprobs[rows, positions] = token_logprobs(scaled_logits, tokens)
        if self._end_marker:
            steps = torch.arange(1 - len(self._end_marker), 1, device=positions.device)
            recent = positions[:, None] + steps
            marker = torch.tensor(self._end_marker, device=positions.device)
            written = (tables.tokens[rows[:, None], recent.clamp(min=0)] == marker) & (recent >= 0)
            tables.ended[rows] |= written.all(dim=1) & emits
        return tokens

    def mix(
        self, embed: Callable[[Tensor], Tensor], embeddings: Tensor, token_ids: Tensor, slots: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the input embeddings of tokens of responses: mixtures where their steps were mixed.

        Args:
            embed: The model's embedding, int64 `[N]` to `[N, d]`; called at most once, by every tensor-parallel rank alike.
            embeddings: `[T, d]`, embeddings of the tokens themselves.
            token_ids: int64 `[T]`.
            slots: int64 `[T]`, -1 for tokens of other requests.
            positions: int64 `[T]`, positions in their responses.
        """
        tables = self._tables
        mixed = (slots >= 0) & tables.mixed[slots, positions]
        candidates = self._candidates(token_ids.long())
        vectors = embeddings[:, None]
        if tables.width > 1:
            others = embed(candidates[:, 1:].flatten()).view(len(token_ids), -1, embeddings.shape[1])
            vectors = torch.cat([vectors, others], dim=1)
        mixture = mix(vectors, tables.weights[slots, positions])
        if self._noisy:
            mixture = add_noise(mixture, tables.seed[slots], positions, tables.noise_std[slots][:, None])
        return torch.where(mixed[:, None], mixture, embeddings)

    def _note_running(self) -> None:
        running = [self._settings[slot] for slot in self._slot.values()]
        self.mixing = any(settings.rate > 0 for settings in running)
        self._noisy = any(settings.noise_std > 0 for settings in running)
        self._nucleus = any(settings.top_p < 1 for settings in running)

    def _candidates(self, anchor_ids: Tensor) -> Tensor:
        return candidate_sets(anchor_ids, self._neighbors, self._tables.width)

    def _to_host(self) -> None:
        """Move the records of finished requests off the device, all at once, and free their slots."""
        if not self._finished:
            return
        tables = self._tables
        rows = torch.tensor(list(self._finished.values()), device=tables.seed.device)
        mixed, weights, logprobs = tables.mixed[rows].cpu(), tables.weights[rows].cpu(), tables.logprobs[rows].cpu()
        for row, (name, slot) in enumerate(self._finished.items()):
            settings = self._settings.pop(slot)
            length = settings.max_tokens
            self._records[name] = SlotRecord(
                mixed[row, :length].clone(), weights[row, :length, : settings.k].clone(), logprobs[row, :length].clone()
            )
            self._free.append(slot)
        self._finished.clear()
