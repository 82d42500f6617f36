"""What a mixing strategy is: the one object that the rollout engines and training ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import mix

Label = Literal["anchor", "sampled"]
"""The token that a mixed step emits: the most likely one, or the one that was sampled."""


@dataclass(frozen=True)
class Step:
    """What a strategy decides on: one decode step of a batch, a row a sequence.

    Attributes:
        scaled_logits: float32 `[N, V]`, divided by the temperature.
        sampled: int64 `[N]`, the tokens that the rows emit without mixing.
        seeds: int64 `[N]`, the rollouts' seeds.
        positions: int64 `[N]`, positions of the next tokens in their responses.
        neighbors: integer `[V, m]`, nearest tokens of each token, nearest first, the token itself left out.
        eligible: bool `[V]`, tokens that a mixed step may emit; special and unused tokens may not.
    """

    scaled_logits: Tensor
    sampled: Tensor
    seeds: Tensor
    positions: Tensor
    neighbors: Tensor
    eligible: Tensor


@dataclass(frozen=True)
class Decision:
    """What a strategy decides for each row, should the row be mixed.

    Attributes:
        tokens: int64 `[N]`, the tokens to emit: text, reward and loss label of the step. A row whose token is not eligible is not mixed.
        candidates: int64 `[N, k]`, tokens whose embeddings are mixed.
        weights: float32 `[N, k]`.
    """

    tokens: Tensor
    candidates: Tensor
    weights: Tensor


class Strategy(ABC):
    """How a gated step is mixed.

    Every row is decided by itself and by its values alone: anything random is drawn from its seed and position
    (`ngrpo.mixing.counter`). On a device rows that are not mixed are decided too, and thrown away, so that nothing waits for it.
    """

    k: int
    """Candidates of a step."""

    @property
    def records_candidates(self) -> bool:
        """Whether records carry candidate ids. They need not where the candidates are the token and its `k - 1` nearest neighbors."""
        return True

    @property
    def neighbors_needed(self) -> int:
        """Neighbors of a token that the index must hold."""
        return 0 if self.records_candidates else self.k - 1

    @abstractmethod
    def decide(self, step: Step) -> Decision:
        """Decide a step."""

    def embed(self, vectors: Tensor, weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """Return the input embeddings that follow mixed steps, in rollouts and in training: the weighted sum, unless overridden.

        Args:
            vectors: `[N, k, d]`, embeddings of the candidates.
            weights: float32 `[N, k]`, as decided.
            seeds: int64 `[N]`, the rollouts' seeds.
            positions: int64 `[N]`, positions of the steps in their responses.

        Returns:
            `[N, d]`, in the type of `vectors`.
        """
        return mix(vectors, weights)


def labels(step: Step, anchors: Tensor, label: Label) -> Tensor:
    """Return the tokens that mixed steps emit.

    Where the anchor may not be mixed (an end-of-sequence token, say) it is returned whatever the label is: such a row is not mixed.

    Args:
        step: The step.
        anchors: int64 `[N]`, the most likely token of each row.
        label: Which token.
    """
    return anchors if label == "anchor" else torch.where(step.eligible[anchors], step.sampled, anchors)


@dataclass(frozen=True)
class StrategySource:
    """What a strategy is made from, in any process.

    Attributes:
        function: Name of a ready one, or a reference to a subclass of `Strategy`: `file.py:Name` or `package.module:Name`.
        options: Arguments of the class, as JSON knows them.
        code: Texts of the file and of what it imports from beside it.
    """

    function: str
    options: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
