"""Launches the kernels on the tables of `MixingSlots`. Nothing here creates a tensor on the host or synchronizes with the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import scale_logits
from ngrpo.rollout.fused import Mixing
from ngrpo.rollout.fused.decision import decide_rows
from ngrpo.rollout.fused.mixture import mix_rows
from ngrpo.rollout.fused.nucleus import keep_nucleus
from ngrpo.rollout.fused.scan import scan_blocks
from ngrpo.rollout.request_tables import Tables

BLOCK = 4096
"""Logits of a block, few enough for one program to hold them in registers."""
WARPS = 8
"""Warps of a program that works on a block. With 4, a block in double precision takes so many registers that no other program fits."""
DIMENSION_BLOCK = 1024
"""Elements of an embedding that one program writes."""


def decide(
    tables: Tables,
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    emits: Tensor,
    *,
    mixing: Mixing | None,
    nucleus: bool,
) -> Tensor:
    """Decide a step: see `MixingSlots.decide`.

    Args:
        tables: Written.
        logits: `[B, V]` of any floating-point type.
        slots: See `MixingSlots.decide`, also for `positions` and `emits`.
        positions: See `slots`.
        emits: See `slots`.
        mixing: None if no request mixes.
        nucleus: Whether any request has one.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, size = logits.shape
    slots, positions, emits = slots.contiguous(), positions.contiguous(), emits.contiguous()
    maxima, sums, places = _scan(tables, logits, slots, scaled=False)
    drawn, drawn_maxima, drawn_sums = logits, maxima, sums
    if nucleus:
        scaled = scale_logits(logits, tables.temperature[slots][:, None])
        drawn = keep_nucleus(scaled, tables.top_p[slots])
        drawn_maxima, drawn_sums, _ = _scan(tables, drawn, slots, scaled=True)
    marker = None if mixing is None else mixing.end_marker
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    decide_rows[(rows,)](
        logits,
        logits.stride(0),
        maxima,
        sums,
        places,
        drawn,
        drawn.stride(0),
        drawn_maxima,
        drawn_sums,
        slots,
        positions,
        emits,
        tokens,
        tables.seed,
        tables.temperature,
        tables.rate,
        tables.strategy,
        tables.progress,
        tables.mixed,
        tables.candidates,
        tables.weights,
        tables.logprobs,
        None if mixing is None else mixing.anchored,
        None if mixing is None else mixing.neighbors,
        0 if mixing is None else mixing.neighbors.stride(0),
        None if mixing is None else mixing.eligible,
        None if marker is None else marker.transitions,
        0 if marker is None else marker.transitions.stride(0),
        0 if marker is None else len(marker.transitions) - 1,
        size,
        maxima.shape[1],
        tables.slots,
        tables.length,
        tables.width,
        MIXES=mixing is not None,
        ENDS=marker is not None,
        NUCLEUS=nucleus,
        BLOCK=BLOCK,
        BLOCKS=triton.next_power_of_2(maxima.shape[1]),
        WIDTH=triton.next_power_of_2(tables.width),
        num_warps=WARPS,
    )
    return tokens


def mix(
    tables: Tables,
    mixing: Mixing,
    embed: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    slots: Tensor,
    positions: Tensor,
    *,
    rows: Tensor | None = None,
    matrix: Tensor | None = None,
) -> None:
    """Overwrite the embeddings of tokens from mixed steps with the mixtures.

    Args:
        tables: Read only.
        mixing: Tables of the mixing.
        embed: See `MixingSlots.mix`; not called if there is a `matrix`.
        embeddings: `[n, d]`, written.
        slots: See `MixingSlots.mix`, also for `positions`.
        positions: See `slots`.
        rows: integer `[T]`, the rows of the tokens in `embeddings`; consecutive unless given.
        matrix: `[V, d]`, whose rows `embed` returns; None if it is sharded over devices, or `embed` does more than a lookup.
    """
    tokens, size = slots.shape[0], embeddings.shape[1]
    slots, positions = slots.contiguous(), positions.contiguous()
    vectors = matrix
    if vectors is None:
        vectors = embed(tables.candidates[slots, positions].flatten().long())
    mix_rows[(tokens, triton.cdiv(size, DIMENSION_BLOCK))](
        embeddings,
        embeddings.stride(0),
        None if rows is None else rows.contiguous(),
        vectors,
        vectors.stride(0),
        slots,
        positions,
        tables.strategy,
        tables.mixed,
        tables.candidates,
        tables.weights,
        mixing.anchored,
        tables.length,
        tables.width,
        size,
        INDEXED=rows is not None,
        LOOKED_UP=matrix is None,
        BLOCK=DIMENSION_BLOCK,
    )


def _scan(tables: Tables, logits: Tensor, slots: Tensor, *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, size = logits.shape
    blocks = triton.cdiv(size, BLOCK)
    maxima = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    sums = torch.empty_like(maxima)
    places = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    scan_blocks[(rows, blocks)](
        logits,
        logits.stride(0),
        slots,
        tables.temperature,
        maxima,
        sums,
        places,
        size,
        tables.slots,
        SCALED=scaled,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return maxima, sums, places
