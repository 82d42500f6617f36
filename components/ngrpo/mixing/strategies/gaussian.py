"""`gaussian`: noise in place of neighbors, the counter-example."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import add_noise, mix
from ngrpo.mixing.strategy import Decision, Step, Strategy


@dataclass(frozen=True)
class Gaussian(Strategy):
    """Emits the sampled token and adds noise to its embedding.

    With noise of 0.33 at every step it is the "fuzzy token" of Soft Tokens, Hard Truths (Butt et al., arXiv 2509.19170), with the
    sampled token as its centre. The noise is the same in training: every pass replays it from seed and position.

    Attributes:
        noise_std: Standard deviation of the noise, relative to the root mean square of the embedding.
    """

    noise_std: float
    k: int = field(default=1, init=False)
    records_candidates = False

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        candidates = step.sampled[:, None]
        return Decision(step.sampled, candidates, torch.ones_like(candidates, dtype=torch.float32))

    def embed(self, vectors: Tensor, weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """See `Strategy.embed`; the noise is a function of seed and position."""
        return add_noise(mix(vectors, weights), seeds, positions, self.noise_std)
