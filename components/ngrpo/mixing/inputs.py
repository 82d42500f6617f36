"""Mixed input embeddings inside a model's own forward pass.

The candidates' ids ride through the embedding module together with the input ids, so there is one lookup, gradients reach the
embedding matrix, and a sharded or scaled embedding module works as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ngrpo.mixing.records import InputMixture


@contextmanager
def mixed_inputs(embedding: nn.Module, mixture: InputMixture | None) -> Iterator[None]:
    """Within this context, the one forward pass of the model sees mixtures where `mixture` says so.

    Args:
        embedding: The model's input embedding module.
        mixture: Mixed positions of the batch; with none, or none set, the model runs untouched.

    Raises:
        RuntimeError: The context held no call of the embedding, or more than one.
        ValueError: The batch does not fit the mixture.
    """
    if mixture is None or not bool(mixture.mask.any()):
        yield
        return

    rows, columns = mixture.mask.nonzero(as_tuple=True)
    candidates = mixture.candidates[rows, columns]
    weights = mixture.weights[rows, columns]
    shapes: list[tuple[int, int]] = []

    def append_candidates(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        (ids,) = arguments
        if ids.shape[0] != mixture.mask.shape[0] or ids.shape[1] < mixture.mask.shape[1]:
            raise ValueError(f"input ids {tuple(ids.shape)} do not fit a mixture of {tuple(mixture.mask.shape)}")
        shapes.append((ids.shape[0], ids.shape[1]))
        return (torch.cat([ids.flatten(), candidates.flatten()]),)

    def mix_candidates(_module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        batch, length = shapes[-1]
        plain = output[: batch * length].view(batch, length, -1)
        vectors = output[batch * length :].view(*candidates.shape, -1)
        mixed = mixture.strategy.embed(vectors, weights, mixture.seeds[rows], mixture.positions[rows] + columns)
        return plain.index_put((rows, columns + length - mixture.mask.shape[1]), mixed)

    handles = [
        embedding.register_forward_pre_hook(append_candidates),
        embedding.register_forward_hook(mix_candidates),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(shapes) != 1:
        raise RuntimeError(f"the embedding must be called once within mixed_inputs, it was called {len(shapes)} times")
