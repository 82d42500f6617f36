"""How far the engine's log-probabilities are from the trainer's, of the same tokens after the same inputs.

Both are of the whole distribution at the temperature of the rollouts, before any nucleus. By the law of replay they differ by rounding
alone, whether a step is mixed or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

SHOWN = 5
"""Tokens that an error shows."""


@dataclass(frozen=True)
class WorstRow:
    """The rollout of this process with the largest difference.

    Attributes:
        inputs: Tensors of the rows that it is one of, by TRL's names.
        row: Which of them it is.
        columns: Places of its largest differences in the response, ascending.
        engine: The engine's log-probabilities there.
        trainer: The trainer's.
        difference: The largest; infinite where the engine has no number.
    """

    inputs: Mapping[str, Tensor]
    row: int
    columns: list[int]
    engine: list[float]
    trainer: list[float]
    difference: float


@dataclass(frozen=True)
class _Scored:
    inputs: Mapping[str, Tensor]
    engine: Tensor
    trainer: Tensor

    @property
    def inside(self) -> Tensor:
        return self.inputs["completion_mask"].bool()

    @property
    def mixed(self) -> Tensor:
        none = torch.zeros_like(self.inside)
        return self.inputs.get("mix_mask", none) & self.inside

    @property
    def differences(self) -> Tensor:
        return (self.trainer - self.engine).abs()


class Mismatch:
    """The differences of one rollout batch after another, over all processes."""

    def __init__(self, accelerator: Accelerator):
        """Begin without any; `accelerator` is that of the processes that share a batch."""
        self._accelerator = accelerator
        self._scored: list[_Scored] = []

    def add(self, inputs: Mapping[str, Tensor], engine: Tensor, trainer: Tensor) -> None:
        """Add some rows.

        Args:
            inputs: Their tensors by TRL's names; `mix_mask` where steps may be mixed.
            engine: `[B, C]`, log-probabilities of the response tokens.
            trainer: `[B, C]`, the same by the model that is trained, with the weights that generated them.
        """
        self._scored.append(_Scored(inputs, engine.float(), trainer.detach().float()))

    def statistics(self) -> dict[str, float]:
        """Return mean, 99th percentile and maximum of what was added, for mixed and unmixed steps; only of those there are."""
        numbers = {}
        for kind in ("unmixed", "mixed"):
            own = [
                scored.differences[scored.mixed if kind == "mixed" else scored.inside & ~scored.mixed]
                for scored in self._scored
            ]
            values = self._of_all_processes(torch.cat(own))
            if not len(values):
                continue
            numbers[f"mismatch/{kind}_mean"] = values.mean().item()
            numbers[f"mismatch/{kind}_p99"] = values.kthvalue(math.ceil(0.99 * len(values))).values.item()
            numbers[f"mismatch/{kind}_max"] = values.max().item()
        return numbers

    def worst(self) -> WorstRow:
        """Return the rollout of this process with the largest difference, whether it is large or not."""
        found = [
            torch.where(scored.inside, scored.differences.nan_to_num(nan=math.inf, posinf=math.inf), -1.0)
            for scored in self._scored
        ]
        of = max(range(len(found)), key=lambda index: found[index].max().item())
        scored, differences = self._scored[of], found[of]
        row = int(differences.max(dim=1).values.argmax())
        length = max(1, int(scored.inside[row].sum()))
        places = differences[row].topk(min(SHOWN, length)).indices.sort().values
        return WorstRow(
            scored.inputs,
            row,
            places.tolist(),
            scored.engine[row, places].tolist(),
            scored.trainer[row, places].tolist(),
            differences[row].max().item(),
        )

    def clear(self) -> None:
        """Forget what was added."""
        self._scored.clear()

    def _of_all_processes(self, values: Tensor) -> Tensor:
        padded = self._accelerator.pad_across_processes(values, dim=0, pad_index=-1)
        gathered: Tensor = self._accelerator.gather(padded)
        return gathered[gathered != -1]
