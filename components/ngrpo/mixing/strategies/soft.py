"""`soft`: soft thinking, whose next input is a mixture of the most likely tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.mixing.neighbor_mixing import mixing_weights
from ngrpo.mixing.strategy import Decision, Label, Step, Strategy, labels


@dataclass(frozen=True)
class Soft(Strategy):
    """Goes on with the `k` most likely tokens, weighted by their probabilities, which are made to add up to one.

    Soft Thinking (Zhang et al., arXiv 2505.15778): with K the k most likely tokens, the next input embedding is
    sum over v in K of p(v) / p(K) E[v].

    Attributes:
        k: Tokens that are mixed.
        label: What is emitted: the most likely token (as in the paper's code), or the sampled one.
    """

    k: int
    label: Label = "anchor"

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        candidates = step.scaled_logits.topk(self.k, dim=-1).indices
        weights = mixing_weights(step.scaled_logits, candidates)
        return Decision(labels(step, candidates[:, 0], self.label), candidates, weights)
