"""Sampling that depends on a request's seed and the position alone, so that every engine and every batch draws the same token."""

from __future__ import annotations

import torch
from torch import Tensor

from ngrpo.mixing.counter import TOKEN, uniform

_PART = 200_000
"""Logits that are worked on together on a processor: their doubles, 1.6 MB, come from memory that was just freed."""


def sample_tokens(scaled_logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Sample a token a row: the cumulative distribution inverted at a counter-based uniform number.

    Args:
        scaled_logits: `[B, V]`; minus infinity for tokens that may not be drawn.
        seeds: int64 `[B]`, the requests' seeds.
        positions: int64 `[B]`, positions of the tokens in their responses.

    Returns:
        int64 `[B]`.
    """
    chosen, rows = uniform(seeds, positions, TOKEN)[:, None], _rows_together(scaled_logits)
    return torch.cat([_invert(*part) for part in zip(scaled_logits.split(rows), chosen.split(rows), strict=True)])


def _invert(scaled_logits: Tensor, chosen: Tensor) -> Tensor:
    cumulative = scaled_logits.softmax(dim=-1).double()
    cumulative.cumsum_(dim=-1)
    tokens = torch.searchsorted(cumulative, chosen * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp(max=scaled_logits.shape[1] - 1)


def _rows_together(logits: Tensor) -> int:
    """Return how many rows are worked on together: all on a device, a few on a processor.

    There temporary matrices of all rows take longer to get than to fill. Rows are worked on each by itself, so what comes is the same.
    """
    rows, vocabulary = logits.shape
    return max(rows, 1) if logits.device.type != "cpu" else max(_PART // vocabulary, torch.get_num_threads())


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
    total = torch.cat([part.logsumexp(dim=1) for part in scaled_logits.split(_rows_together(scaled_logits))])
    return scaled_logits.gather(1, tokens[:, None])[:, 0] - total
