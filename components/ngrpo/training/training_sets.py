"""The order in which several training sets take turns, each with its share, and the reward of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ngrpo.rollout.seeds import request_seed


@dataclass(frozen=True)
class TrainingSets:
    """The sets of a table, by the names in its rows.

    Attributes:
        rows: Of each set the numbers of its rows.
        weights: Of each set its weight.
    """

    rows: dict[str, list[int]]
    weights: dict[str, float]

    @classmethod
    def of(cls, sets: Sequence[str], weights: Sequence[float]) -> TrainingSets:
        """Return the sets that the columns `SET` and `WEIGHT` of a table tell of."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(sets):
            rows.setdefault(name, []).append(row)
        return cls(rows, dict(zip(sets, weights, strict=True)))

    def order(self, seed: int, epoch: int) -> list[int]:
        """Return the rows of an epoch, as many as the table has.

        Every stretch of it has each set's share, less than one row more or less for each set. A set whose share is larger than its rows
        comes round several times in an epoch, one whose share is smaller goes on in the next epoch where it stopped: each comes round as a
        whole, in an order drawn anew, before a row is repeated. All follows from seed and epoch, and nothing from the size of batches.
        """
        turns = self._turns()
        next_of = {name: epoch * turns.count(name) for name in self.rows}
        shuffled: dict[tuple[str, int], list[int]] = {}
        order = []
        for name in turns:
            rows = self.rows[name]
            round_, place = divmod(next_of[name], len(rows))
            if (name, round_) not in shuffled:
                shuffled[name, round_] = _shuffled(rows, request_seed(seed, name, round_))
            order.append(shuffled[name, round_][place])
            next_of[name] += 1
        return order

    def _turns(self) -> list[str]:
        """Return whose turn it is at each place of an epoch: of the set that is furthest behind its share."""
        total = sum(self.weights.values())
        behind = dict.fromkeys(self.rows, 0.0)
        turns = []
        for _ in range(sum(map(len, self.rows.values()))):
            for name in behind:
                behind[name] += self.weights[name] / total
            turn = max(behind, key=lambda name: behind[name])
            behind[turn] -= 1
            turns.append(turn)
        return turns


def set_metrics(sets: Sequence[str], rewards: Sequence[Sequence[float]], weights: Sequence[float]) -> dict[str, float]:
    """Return of each set in a rollout batch its share of the rollouts and its mean reward.

    Args:
        sets: Of each rollout the set of its problem.
        rewards: Of each reward function the reward of each rollout, NaN where it has none.
        weights: Of each reward function its weight.
    """
    totals: dict[str, list[float]] = {}
    for name, values in zip(sets, zip(*rewards, strict=True), strict=True):
        weighted = [value * weight for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
        totals.setdefault(name, []).extend([sum(weighted)] if weighted else [])
    metrics = {f"sets/{name}/share": sets.count(name) / len(sets) for name in totals}
    return metrics | {f"sets/{name}/reward": sum(each) / len(each) for name, each in totals.items() if each}


def _shuffled(rows: Sequence[int], seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
