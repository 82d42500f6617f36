"""Sampling that depends on a request's seed and the position alone, so that every engine and every batch draws the same token."""

from __future__ import annotations

import torch
from torch import Tensor

from ngrpo.mixing.counter import TOKEN, uniform


def sample_tokens(scaled_logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Sample a token a row: the cumulative distribution inverted at a counter-based uniform number.

    Args:
        scaled_logits: `[B, V]`; minus infinity for tokens that may not be drawn.
        seeds: int64 `[B]`, the requests' seeds.
        positions: int64 `[B]`, positions of the tokens in their responses.

    Returns:
        int64 `[B]`.
    """
    cumulative = scaled_logits.softmax(dim=-1).double()
    cumulative.cumsum_(
        dim=-1
    )  # in place: on a processor, allocating a second matrix of doubles takes longer than filling it
    threshold = uniform(seeds, positions, TOKEN)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=scaled_logits.shape[1] - 1)


def keep_nucleus(scaled_logits: Tensor, top_p: float | Tensor) -> Tensor:
    """Keep each row's smallest set of most likely tokens whose probability reaches `top_p` (Holtzman et al., arXiv 1904.09751).

    Args:
        scaled_logits: `[B, V]`.
        top_p: In (0, 1]; one for all rows, or `[B]`.

    Returns:
        `[B, V]`, minus infinity outside the nucleus.
    """
    if isinstance(top_p, Tensor):
        top_p = top_p[:, None]
    ascending, order = scaled_logits.sort(dim=-1)
    outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    outside[:, -1] = False  # keep the most likely token, whatever rounding does
    return scaled_logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def token_logprobs(scaled_logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each row's token `[B]` under its logits `[B, V]`, without storing a whole log-softmax."""
    return scaled_logits.gather(1, tokens[:, None])[:, 0] - scaled_logits.logsumexp(dim=1)
