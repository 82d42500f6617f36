"""What a rollout engine asks at each decode step: which rows are mixed, with which token, candidates and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.neighbor_mixing import gate
from ngrpo.mixing.strategy import Step, Strategy, StrategySource


@dataclass(frozen=True)
class MixedStep:
    """One decode step, decided; candidates and weights count where a row is mixed.

    Attributes:
        mixed: bool `[N]`.
        tokens: int64 `[N]`, the tokens that the rows emit.
        candidates: int64 `[N, k]`.
        weights: float32 `[N, k]`.
    """

    mixed: Tensor
    tokens: Tensor
    candidates: Tensor
    weights: Tensor


def mixed_step(strategy: Strategy, step: Step, *, rate: float | Tensor, active: Tensor) -> MixedStep:
    """Decide one decode step.

    A gated row whose token is not eligible (an end-of-sequence token, say) stays an ordinary sampled step.

    Args:
        strategy: Decides what is mixed.
        step: The step.
        rate: Gate rate rho; one for all rows, or `[N]`.
        active: bool `[N]`, rows that may be mixed.
    """
    decision = strategy.decide(step)
    mixed = gate(step.seeds, step.positions, rate) & active & step.eligible[decision.tokens]
    return MixedStep(
        mixed, torch.where(mixed, decision.tokens, step.sampled), decision.candidates, decision.weights.float()
    )


@dataclass(frozen=True)
class Mixer:
    """A strategy beside what it draws on.

    Attributes:
        strategy: What happens on gated steps.
        rate: Gate rate rho.
        neighbors: integer `[V, m]`, nearest tokens of each token, nearest first.
        eligible: bool `[V]`, tokens that may be emitted by a mixed step; special and unused tokens may not.
        index_version: Version of the index that `neighbors` comes from.
        end_marker: Text after which mixing ends; none for never.
        source: What other processes make the strategy from; taken from its class unless given.
    """

    strategy: Strategy
    rate: float
    neighbors: Tensor
    eligible: Tensor
    index_version: int
    end_marker: EndMarker | None = None
    source: StrategySource | None = None

    @property
    def k(self) -> int:
        """Candidates of a step."""
        return self.strategy.k
