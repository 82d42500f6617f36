"""`neighbor`: Semantic Neighbor Mixing (N-GRPO), equations 6-10, and as the authors' release has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ngrpo.mixing.neighbor_mixing import anchors, candidate_sets, mixing_weights, release_weights
from ngrpo.mixing.strategy import Decision, Label, Step, Strategy, labels


@dataclass(frozen=True)
class Neighbor(Strategy):
    """Mixes the most likely token, the anchor, with its nearest neighbors.

    With `k = 1` nothing is mixed: a gated step is a greedy one, which is the control for what the neighbors add.

    Attributes:
        k: Size of the candidate set, the anchor counted.
        label: What is emitted: the anchor (the paper, section 3.3), or the sampled token (the release). The candidates are the
            anchor's neighbors either way.
        weights: `softmax` of the candidates' logits (equation 9), or the `release`'s softmax of their probabilities.
    """

    k: int
    label: Label = "anchor"
    weights: Literal["softmax", "release"] = "softmax"

    @property
    def records_candidates(self) -> bool:
        """See `Strategy.records_candidates`: of a token that was sampled nobody can tell the anchor."""
        return self.label == "sampled"

    @property
    def neighbors_needed(self) -> int:
        """See `Strategy.neighbors_needed`."""
        return self.k - 1

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        anchor_ids = anchors(step.scaled_logits)
        candidates = candidate_sets(anchor_ids, step.neighbors, self.k)
        weigh = mixing_weights if self.weights == "softmax" else release_weights
        return Decision(labels(step, anchor_ids, self.label), candidates, weigh(step.scaled_logits, candidates))
