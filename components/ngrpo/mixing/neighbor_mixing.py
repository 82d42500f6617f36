"""The equations of Semantic Neighbor Mixing (arXiv 2606.10768, section 3), one function each."""

from __future__ import annotations

import torch
from torch import Tensor

from ngrpo.mixing.counter import GATE, normal, uniform


def scale_logits(logits: Tensor, temperature: float | Tensor, *, overwrite: bool = False) -> Tensor:
    """Equation 2: logits `[..., V]` divided by the temperature (one for all rows, or `[..., 1]`), in float32; in place on demand."""
    return logits.float().div_(temperature) if overwrite else logits.float() / temperature


def gate(seeds: Tensor, positions: Tensor, rate: float | Tensor) -> Tensor:
    """Equation 11: whether a step is gated, Bernoulli(`rate`).

    Args:
        seeds: int64 `[B]`, the request's seed.
        positions: int64 `[B]`, the step's position in the response, from 0.
        rate: rho, in [0, 1]; one for all rows, or `[B]`.

    Returns:
        bool `[B]`.
    """
    return uniform(seeds, positions, GATE) < rate


def anchors(scaled_logits: Tensor) -> Tensor:
    """Equation 6: the most likely token of each row; `[B, V]` to int64 `[B]`."""
    return scaled_logits.argmax(dim=-1)


def candidate_sets(anchor_ids: Tensor, neighbors: Tensor, k: int) -> Tensor:
    """Equations 7-8: the anchor followed by its `k - 1` nearest neighbors.

    Args:
        anchor_ids: int64 `[N]`.
        neighbors: integer `[V, m]`, the nearest tokens of each token, nearest first, the token itself left out.
        k: Size of the set, at most `m + 1`.

    Returns:
        int64 `[N, k]`.
    """
    return torch.cat([anchor_ids[:, None], neighbors[anchor_ids, : k - 1].long()], dim=1)


def mixing_weights(scaled_logits: Tensor, candidates: Tensor) -> Tensor:
    """Equation 9: softmax of the scaled logits restricted to the candidates.

    Args:
        scaled_logits: `[N, V]`.
        candidates: int64 `[N, k]`.

    Returns:
        float32 `[N, k]`.
    """
    logits = scaled_logits.gather(-1, candidates)
    return logits.softmax(dim=-1)


def release_weights(scaled_logits: Tensor, candidates: Tensor) -> Tensor:
    """The weights of the authors' release in place of equation 9: softmax(p[C]), where p is the softmax over the vocabulary.

    The probabilities are taken for logits, so no candidate weighs more than e times another: where p of the anchor is 0.999, three
    candidates weigh 0.576, 0.212 and 0.212.

    Args:
        scaled_logits: `[N, V]`.
        candidates: int64 `[N, k]`.

    Returns:
        float32 `[N, k]`.
    """
    probabilities = scaled_logits.softmax(dim=-1).gather(-1, candidates)
    return probabilities.softmax(dim=-1)


def mix(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Equation 10: weighted sum over the candidates, in float32, returned in the type of the embeddings.

    Args:
        embeddings: `[N, k, d]`.
        weights: `[N, k]`.

    Returns:
        `[N, d]`.
    """
    return (embeddings.float() * weights.float()[..., None]).sum(dim=-2).to(embeddings.dtype)


def add_noise(embeddings: Tensor, seeds: Tensor, positions: Tensor, std: float) -> Tensor:
    """Add Gaussian noise in place of mixing: the counter-example to neighbors.

    Args:
        embeddings: `[N, d]`.
        seeds: int64 `[N]`, the rollouts' seeds.
        positions: int64 `[N]`, positions in the responses.
        std: Standard deviation relative to each embedding's root mean square, which carries no gradient.

    Returns:
        `[N, d]`, in the type of the embeddings.
    """
    scale = embeddings.detach().float().square().mean(dim=-1, keepdim=True).sqrt() * std
    noise = normal(seeds, positions, embeddings.shape[-1])
    return (embeddings.float() + scale * noise).to(embeddings.dtype)
