"""`token`: no mixing, plain GRPO."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ngrpo.mixing.strategy import Decision, Step, Strategy


@dataclass(frozen=True)
class Token(Strategy):
    """Emits the sampled token, followed by its own embedding: the same as no strategy, so nothing is set up for it."""

    k: int = field(default=1, init=False)
    records_candidates = False

    def decide(self, step: Step) -> Decision:
        """See `Strategy.decide`."""
        candidates = step.sampled[:, None]
        return Decision(step.sampled, candidates, torch.ones_like(candidates, dtype=torch.float32))
