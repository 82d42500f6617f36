"""What a rollout engine asks at each decode step: which rows are mixed, with which token, candidates and weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.neighbor_mixing import gate
from ngrpo.mixing.strategy import Decision, Step, Strategy, StrategySource


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

    On a processor the strategy is asked about the gated rows alone, a tenth of them; on a device about all, since which rows they
    are is not known here without waiting for it. Rows are decided each by itself, so what comes is the same.

    Args:
        strategy: Decides what is mixed.
        step: The step.
        rate: Gate rate rho; one for all rows, or `[N]`.
        active: bool `[N]`, rows that may be mixed.
    """
    gated = gate(step.seeds, step.positions, rate) & active
    if gated.device.type != "cpu":
        return _laid_over(step, strategy.decide(step), gated)
    tokens = step.sampled
    mixed, candidates, weights = (
        torch.zeros_like(gated),
        tokens.new_zeros(len(tokens), strategy.k),
        torch.zeros(len(tokens), strategy.k),
    )
    rows = gated.nonzero()[:, 0]
    if len(rows):
        of_rows = {name: getattr(step, name)[rows] for name in ("scaled_logits", "sampled", "seeds", "positions")}
        part = replace(step, **of_rows)
        decided = _laid_over(part, strategy.decide(part), gated[rows])
        mixed[rows], candidates[rows], weights[rows] = decided.mixed, decided.candidates, decided.weights
        tokens = tokens.index_copy(0, rows, decided.tokens)
    return MixedStep(mixed, tokens, candidates, weights)


def _laid_over(step: Step, decision: Decision, gated: Tensor) -> MixedStep:
    mixed = gated & step.eligible[decision.tokens]
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
