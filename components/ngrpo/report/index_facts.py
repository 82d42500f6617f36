"""What an index says of its matrix: example neighbor sets, similarities, hubs, rows that are nearly the same."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ngrpo.neighbors.index import NeighborIndex

_EXAMPLES, _SHOWN, _LISTED, _BINS = 12, 5, 10, 40
_HUB_EDGES = (0, 1, 10, 100, 1000)
_NEARLY_SAME = 0.99
"""Cosine from which on two rows count as near-duplicates."""


def example_neighbors(index: NeighborIndex, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the nearest neighbors of tokens spread evenly over the eligible vocabulary."""
    eligible = index.eligible.nonzero(as_tuple=True)[0].tolist()
    step = max(1, len(eligible) // _EXAMPLES)
    return [
        {
            "token": tokenizer.decode([token]),
            "neighbors": [
                {"token": tokenizer.decode([neighbor]), "similarity": round(similarity, 4)}
                for neighbor, similarity in zip(
                    index.neighbors[token, :_SHOWN].tolist(), index.similarity[token, :_SHOWN].tolist(), strict=True
                )
            ],
        }
        for token in eligible[::step][:_EXAMPLES]
    ]


def describe(index: NeighborIndex, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Describe an index on the CPU.

    Returns:
        metric: Its metric.
        vocabulary, eligible, candidates: Its sizes V, eligible tokens and m.
        examples: See `example_neighbors`.
        nearest: `edges` and `counts` of the histogram of similarities to the nearest token, and their `median`.
        hubness: `edges` and `counts` of how often tokens are among the m neighbors of others, the last bin open.
        hubs: The tokens that most often are, with the number of times.
        closest: The pairs of tokens that are most similar.
        near_duplicates: Tokens whose nearest has a cosine of 0.99 or more; none under another metric.
    """
    ids = index.eligible.nonzero(as_tuple=True)[0]
    nearest = index.similarity[ids, 0]
    counts, edges = torch.histogram(nearest, _BINS)
    times = torch.bincount(index.neighbors[ids].flatten().long(), minlength=len(index.eligible))
    hubs = times.argsort(descending=True, stable=True)[:_LISTED]
    bins = torch.bucketize(times[ids], torch.tensor(_HUB_EDGES), right=True) - 1
    order = nearest.argsort(descending=True, stable=True)
    pairs: dict[tuple[int, int], float] = {}
    for token, similarity in zip(
        ids[order[: 4 * _LISTED]].tolist(), nearest[order[: 4 * _LISTED]].tolist(), strict=True
    ):
        first, second = sorted((token, int(index.neighbors[token, 0])))
        pairs.setdefault((first, second), similarity)
    return {
        "metric": index.metric,
        "vocabulary": len(index.eligible),
        "eligible": len(ids),
        "candidates": index.neighbors.shape[1],
        "examples": example_neighbors(index, tokenizer),
        "nearest": {
            "edges": edges.tolist(),
            "counts": counts.int().tolist(),
            "median": float(nearest.median()),
        },
        "hubness": {"edges": _HUB_EDGES, "counts": torch.bincount(bins, minlength=len(_HUB_EDGES)).tolist()},
        "hubs": [{"token": tokenizer.decode([hub]), "times": int(times[hub])} for hub in hubs.tolist()],
        "closest": [
            {"tokens": [tokenizer.decode([first]), tokenizer.decode([second])], "similarity": round(similarity, 4)}
            for (first, second), similarity in list(pairs.items())[:_LISTED]
        ],
        "near_duplicates": int((nearest >= _NEARLY_SAME).sum()) if index.metric == "cosine" else None,
    }
