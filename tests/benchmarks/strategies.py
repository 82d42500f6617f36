"""What a strategy costs a decode step on a processor: the decision of a step whose rows are all mixed, against one that mixes none."""

from __future__ import annotations

import itertools

import torch
from tests.benchmarks.measure import report, rotate

from ngrpo.mixing.strategies import Gumbel, Neighbor, Soft
from ngrpo.mixing.strategy import Strategy
from ngrpo.rollout.slots import MixingSlots, RequestSettings

BATCH, STEPS, ROUNDS, K = 32, 64, 10, 3
VOCABULARIES = {"smollm2": 49_152, "qwen2": 151_936}
STRATEGIES: dict[str, Strategy] = {"neighbor": Neighbor(K), "soft": Soft(K), "gumbel": Gumbel(K)}


def run() -> list[dict]:
    """Measure each strategy at rate 1 on one thread, by the time that it takes of the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [result for name, size in VOCABULARIES.items() for result in _measured(name, size)]
    finally:
        torch.set_num_threads(threads)


def _measured(name: str, vocabulary: int) -> list[dict]:
    torch.manual_seed(0)
    logits = torch.randn(BATCH, vocabulary) * 3
    ways = {which: _Step(logits, strategy) for which, strategy in {"none": None, **STRATEGIES}.items()}
    times = rotate(ways, ROUNDS)
    return [
        report(
            f"strategies_{which}_{name}",
            times[which].processor_seconds,
            times["none"].processor_seconds,
            unit="ms of processor time for each row",
            scale=1000 / BATCH,
            peer_is="a step that mixes nothing",
            vocabulary=vocabulary,
            rate=1.0,
            k=K,
        )
        for which in STRATEGIES
    ]


class _Step:
    """Decides one step after the other."""

    def __init__(self, logits: torch.Tensor, strategy: Strategy | None):
        self._logits, self._positions = logits, itertools.cycle(range(STEPS))
        vocabulary = logits.shape[1]
        self._slots = MixingSlots(torch.device("cpu"), BATCH)
        neighbors = torch.randint(0, vocabulary, (vocabulary, K), dtype=torch.int32)
        self._slots.set_index(neighbors, torch.ones(vocabulary, dtype=torch.bool), None)
        if strategy is not None:
            self._slots.add_strategy(0, strategy)
        number, rate = (None, 0.0) if strategy is None else (0, 1.0)
        names = [str(row) for row in range(BATCH)]
        asked = [(name, RequestSettings(name, row, 0.7, 1.0, STEPS, rate, number)) for row, name in enumerate(names)]
        self._rows = torch.tensor(self._slots.join(asked))

    def __call__(self) -> None:
        positions = torch.full((BATCH,), next(self._positions))
        self._slots.decide(self._logits, self._rows, positions, torch.ones(BATCH, dtype=torch.bool))
