"""What a rollout engine asks at each decode step: which rows are mixed, with which token, candidates and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import anchors, candidate_sets, gate, mixing_weights

Strategy = Literal["neighbor", "gaussian"]


@dataclass(frozen=True)
class Step:
    """The mixed rows of one decode step.

    Attributes:
        rows: int64 `[n]`, rows of the batch that are mixed.
        tokens: int64 `[n]`, the tokens these rows emit.
        candidates: int64 `[n, k]`.
        weights: float32 `[n, k]`.
    """

    rows: Tensor
    tokens: Tensor
    candidates: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Mixer:
    """Settings of mixing beside the index it draws on.

    Attributes:
        strategy: `neighbor` mixes the anchor with its neighbors; `gaussian` samples the token and adds noise to its embedding.
        rate: Gate rate rho.
        k: Size of the candidate set; 1 with `gaussian`.
        neighbors: integer `[V, m]`, nearest tokens of each token, nearest first.
        eligible: bool `[V]`, tokens that may be anchors; special and unused tokens may not.
        index_version: Version of the index that `neighbors` comes from.
        end_marker: Token ids after which mixing ends; empty for never.
        noise_std: `gaussian` only, relative to the embedding's root mean square.
    """

    strategy: Strategy
    rate: float
    k: int
    neighbors: Tensor
    eligible: Tensor
    index_version: int
    end_marker: Sequence[int] = ()
    noise_std: float = 0.0

    def step(self, scaled_logits: Tensor, sampled: Tensor, seeds: Tensor, positions: Tensor, active: Tensor) -> Step:
        """Decide one decode step.

        A gated row whose anchor is not eligible (an end-of-sequence token, say) stays an ordinary sampled step.

        Args:
            scaled_logits: float32 `[B, V]`.
            sampled: int64 `[B]`, the tokens that ungated rows emit.
            seeds: int64 `[B]`.
            positions: int64 `[B]`, positions of the emitted tokens in their responses.
            active: bool `[B]`, rows that have not passed the end marker.
        """
        rows = (gate(seeds, positions, self.rate) & active).nonzero(as_tuple=True)[0]
        if self.strategy == "gaussian":
            tokens = sampled[rows]
            keep = self.eligible[tokens]
            rows, tokens = rows[keep], tokens[keep]
            ones = torch.ones(len(rows), 1, device=sampled.device)
            return Step(rows, tokens, tokens[:, None], ones)
        logits = scaled_logits[rows]
        tokens = anchors(logits)
        keep = self.eligible[tokens]
        rows, tokens, logits = rows[keep], tokens[keep], logits[keep]
        candidates = candidate_sets(tokens, self.neighbors, self.k)
        return Step(rows, tokens, candidates, mixing_weights(logits, candidates))

    def passes_end_marker(self, recent: Tensor) -> Tensor:
        """Whether the last tokens of each row, int64 `[B, len(end_marker)]`, are the end marker; bool `[B]`."""
        return (recent == torch.tensor(self.end_marker, device=recent.device)).all(dim=1)
