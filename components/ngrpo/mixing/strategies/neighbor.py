"""`neighbor`: Semantic Neighbor Mixing (N-GRPO), equations 6-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ngrpo.mixing.neighbor_mixing import anchors, candidate_sets, mixing_weights
from ngrpo.mixing.strategy import Decision, Step, Strategy


@dataclass(frozen=True)
class Neighbor(Strategy):
    """Emits the most likely token, the anchor, and mixes it with its nearest neighbors.

    Attributes:
        k: Size of the candidate set, the anchor counted.
    """

    k: int
    records_candidates: ClassVar[bool] = False

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        tokens = anchors(step.scaled_logits)
        candidates = candidate_sets(tokens, step.neighbors, self.k)
        return Decision(tokens, candidates, mixing_weights(step.scaled_logits, candidates))
