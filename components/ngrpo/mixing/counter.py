"""Counter-based random numbers: a value is a hash of (seed, position, stream), so it does not depend on batching, engine or resume."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GATE, TOKEN, NOISE, GUMBEL = 0, 1, 2, 3
"""Streams: what a number is drawn for. Different streams of one seed and position are independent."""

_MASK = 0xFFFFFFFF
_ROWS = 64
"""Rows whose Gumbel numbers are drawn at a time: each takes some doubles for every token of the vocabulary."""


def _avalanche(x: Tensor) -> Tensor:
    # The 32-bit finaliser "lowbias32" on int64 tensors: products wrap modulo 2**64, and the mask keeps their low half.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def random_bits(seed: Tensor, position: Tensor, stream: int) -> Tensor:
    """Return 32 random bits for each (seed, position).

    Args:
        seed: int64, values in [0, 2**63).
        position: int64, broadcastable with `seed`, values in [0, 2**32).
        stream: One of the streams of this module.

    Returns:
        int64 tensor of the broadcast shape, values in [0, 2**32).
    """
    bits = _avalanche((seed & _MASK) ^ (0x9E3779B9 + stream))
    bits = _avalanche(bits ^ (seed >> 32))
    return _avalanche((bits + position) & _MASK)


def uniform(seed: Tensor, position: Tensor, stream: int) -> Tensor:
    """Return a float64 uniform number in [0, 1) for each (seed, position); arguments as in `random_bits`."""
    return random_bits(seed, position, stream).double() * 2.0**-32


def normal(seed: Tensor, position: Tensor, size: int) -> Tensor:
    """Return standard normal vectors of the noise stream, by the Box-Muller transform.

    Args:
        seed: int64 `[N]`.
        position: int64 `[N]`.
        size: Length of a vector.

    Returns:
        float32 `[N, size]`.
    """
    key = random_bits(seed, position, NOISE)[:, None]
    counter = torch.arange(2 * size, device=seed.device)[None, :]
    first, second = uniform(key, counter, NOISE).chunk(2, dim=-1)
    # 1 - first is in (0, 1], so the logarithm is finite.
    return (torch.sqrt(-2.0 * torch.log(1.0 - first)) * torch.cos(2.0 * math.pi * second)).float()


def gumbel(seeds: Tensor, positions: Tensor, size: int) -> Tensor:
    """Return standard Gumbel numbers, -log(-log(u)), for each token of a vocabulary: a function of seed, position and token id.

    Args:
        seeds: int64 `[N]`.
        positions: int64 `[N]`.
        size: Size of the vocabulary.

    Returns:
        float32 `[N, size]`.
    """
    tokens = torch.arange(size, device=seeds.device)[None, :]
    keys = random_bits(seeds, positions, GUMBEL)[:, None]
    return torch.cat([_gumbel(random_bits(some, tokens, GUMBEL)) for some in keys.split(_ROWS)])


def _gumbel(bits: Tensor) -> Tensor:
    # Half a step above the bits: in (0, 1), so both logarithms are finite.
    return -torch.log(-torch.log((bits.double() + 0.5) * 2.0**-32)).float()
