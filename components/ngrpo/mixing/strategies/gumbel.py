"""`gumbel`: soft thinking with Gumbel noise on the logits."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.mixing.counter import gumbel
from ngrpo.mixing.neighbor_mixing import mixing_weights
from ngrpo.mixing.strategy import Decision, Step, Strategy


@dataclass(frozen=True)
class Gumbel(Strategy):
    """Adds Gumbel noise g(v) to the scaled logits z(v) of the vocabulary and goes on with the `k` tokens that are the highest then.

    Stochastic Soft Thinking (Wu et al., arXiv 2508.03440) with the Gumbel-softmax of Jang et al. (arXiv 1611.01144). The weights are

        y(v) = exp((z(v) + g(v)) / t) / sum over u in K of exp((z(u) + g(u)) / t)

    with K those k tokens. The emitted token is the highest of them. By the Gumbel-max theorem it is a sample of softmax(z), over the
    whole vocabulary. The noise is a function of seed, position and token id.

    Attributes:
        k: Tokens that are mixed.
        gumbel_temperature: t, above 0.
        noise_in_weights: Whether the weights are y. If not, noise only chooses the tokens, and they weigh what `soft` would give them:
            softmax of z over K.
    """

    k: int
    gumbel_temperature: float = 0.5
    noise_in_weights: bool = True

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        logits = step.scaled_logits
        noisy = logits + gumbel(step.seeds, step.positions, logits.shape[-1])
        candidates = noisy.topk(self.k, dim=-1).indices
        weighed = noisy / self.gumbel_temperature if self.noise_in_weights else logits
        return Decision(candidates[:, 0], candidates, mixing_weights(weighed, candidates))
