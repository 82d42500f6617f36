"""Difference of the engine's and the trainer's log-probabilities for the same tokens after the same inputs.

Both are taken over the whole distribution at the rollouts' temperature, before any nucleus. By the law of replay they differ only by
rounding, whether a step is mixed or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

SHOWN = 5
"""Number of tokens shown in an error."""


@dataclass(frozen=True)
class WorstRow:
    """The rollout of this process with the largest difference.

    Attributes:
        inputs: Tensors of its batch, by TRL's names.
        row: Its row there.
        columns: Positions of its largest differences in the response, ascending.
        engine: The engine's log-probabilities there.
        trainer: The trainer's.
        difference: The largest difference; infinite if the engine's number is missing.
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
    """Collects the differences of rollout batches over all processes."""

    def __init__(self, accelerator: Accelerator):
        """Start empty; `accelerator` is that of the processes that share a batch."""
        self._accelerator = accelerator
        self._scored: list[_Scored] = []

    def add(self, inputs: Mapping[str, Tensor], engine: Tensor, trainer: Tensor) -> None:
        """Add some rows.

        Args:
            inputs: Their tensors by TRL's names; with `mix_mask` if steps may be mixed.
            engine: `[B, C]`, log-probabilities of the response tokens.
            trainer: `[B, C]`, the same from the model in training, with the weights that generated them.
        """
        self._scored.append(_Scored(inputs, engine.float(), trainer.detach().float()))

    def statistics(self) -> dict[str, float]:
        """Return mean, 99th percentile and maximum of the differences, for mixed and unmixed steps if there are any."""
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
