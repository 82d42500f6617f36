"""What a mixing strategy is: the one object that the rollout engines and training ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ngrpo.mixing.neighbor_mixing import mix


@dataclass(frozen=True)
class Step:
    """What a strategy decides on: one decode step of a batch, a row a sequence.

    Attributes:
        scaled_logits: float32 `[N, V]`, divided by the temperature.
        sampled: int64 `[N]`, the tokens that the rows emit without mixing.
        seeds: int64 `[N]`, the rollouts' seeds.
        positions: int64 `[N]`, positions of the next tokens in their responses.
        neighbors: integer `[V, m]`, nearest tokens of each token, nearest first, the token itself left out.
    """

    scaled_logits: Tensor
    sampled: Tensor
    seeds: Tensor
    positions: Tensor
    neighbors: Tensor


@dataclass(frozen=True)
class Decision:
    """What a strategy decides for each row, should the row be mixed.

    Attributes:
        tokens: int64 `[N]`, the tokens to emit: text, reward and loss label of the step.
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
    records_candidates: ClassVar[bool] = True
    """Whether records carry candidate ids. They need not where the candidates are the token and its `k - 1` nearest neighbors."""

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
