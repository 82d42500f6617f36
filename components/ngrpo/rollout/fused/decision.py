"""The second kernel: the next token of each row, and the record of its step."""

import triton
import triton.language as tl

from ngrpo.mixing import counter
from ngrpo.rollout.fused.counter import uniform

GATE = tl.constexpr(counter.GATE)
TOKEN = tl.constexpr(counter.TOKEN)


@triton.jit
def _first_beyond(masses, threshold, SIZE: tl.constexpr):
    """Return where the cumulative sum of masses passes a threshold; the last mass above zero if rounding leaves no such place."""
    at = tl.arange(0, SIZE)
    # A parallel cumulative sum can decrease by rounding, so the place must also have mass.
    above = (tl.cumsum(masses, 0) > threshold) & (masses > 0)
    first = tl.min(tl.where(above, at, SIZE), 0)
    return tl.where(first < SIZE, first, tl.maximum(tl.max(tl.where(masses > 0, at, -1), 0), 0))


@triton.jit
def _masses(maxima, sums, row, blocks, BLOCKS: tl.constexpr):
    """Combine the blocks of a row.

    Returns:
        The largest number (ignoring NaN), whether there is NaN, and float64 `[BLOCKS]`, the blocks' sums of exp(logit - largest).
    """
    at = tl.arange(0, BLOCKS)
    tops = tl.load(maxima + row * blocks + at, mask=at < blocks, other=float("-inf"))
    parts = tl.load(sums + row * blocks + at, mask=at < blocks, other=0.0)
    unordered = tops != tops
    top = tl.max(tl.where(unordered, float("-inf"), tops), 0)
    return top, tl.max(unordered.to(tl.int32), 0) > 0, parts.to(tl.float64) * tl.exp(tops - top).to(tl.float64)


@triton.jit
def _anchor(maxima, places, row, blocks, top, has_nan, BLOCKS: tl.constexpr):
    """Equation 6: the most likely token, the first one of a tie."""
    at = tl.arange(0, BLOCKS)
    inside = at < blocks
    tops = tl.load(maxima + row * blocks + at, mask=inside, other=float("-inf"))
    found = tl.where(has_nan, tops != tops, tops == top) & inside
    return tl.load(places + row * blocks + tl.min(tl.where(found, at, BLOCKS), 0)).to(tl.int64)


@triton.jit
def decide_rows(
    logits,
    logits_stride,
    maxima,
    sums,
    places,
    drawn,
    drawn_stride,
    drawn_maxima,
    drawn_sums,
    slots,
    positions,
    emits,
    tokens,
    seeds,
    temperatures,
    rates,
    strategies,
    progress,
    mixed,
    candidates,
    weights,
    logprobs,
    anchored,
    neighbors,
    neighbors_stride,
    eligible,
    transitions,
    transitions_stride,
    last_state,
    size,
    blocks,
    slot_count,
    length,
    width,
    MIXES: tl.constexpr,
    ENDS: tl.constexpr,
    NUCLEUS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Decide one row: see `MixingSlots.decide`. The grid has one program per row.

    Args:
        logits: `[B, size]`, rows `logits_stride` apart.
        logits_stride: See `logits`.
        maxima: See `scan_blocks`, also for `sums` and `places`.
        sums: See `maxima`.
        places: See `maxima`.
        drawn: The logits that tokens are drawn from: `logits`, or with a nucleus scaled ones in float32.
        drawn_stride: See `drawn`.
        drawn_maxima: Like `maxima`, of `drawn`.
        drawn_sums: Like `sums`, of `drawn`.
        slots: See `MixingSlots.decide`, also for `positions` and `emits`.
        positions: See `slots`.
        emits: See `slots`.
        tokens: int64 `[B]`, written.
        seeds: See `Tables`, also for all arguments up to `logprobs`; those from `progress` on are written.
        temperatures: See `seeds`.
        rates: See `seeds`.
        strategies: See `seeds`.
        progress: See `seeds`.
        mixed: See `seeds`.
        candidates: See `seeds`.
        weights: See `seeds`.
        logprobs: See `seeds`.
        anchored: See `Mixing`, also for all arguments up to `transitions_stride`.
        neighbors: See `anchored`.
        neighbors_stride: Stride between rows of `neighbors`.
        eligible: See `anchored`.
        transitions: See `EndMarker`.
        transitions_stride: Stride between rows of `transitions`.
        last_state: State after the marker.
        size: V.
        blocks: Number of blocks of a row.
        slot_count: Number of slots of the tables.
        length: Number of positions of the tables.
        width: Number of candidates of the tables.
        MIXES: Whether any row may mix; if not, the arguments from `progress` to `weights` and `anchored` to `last_state` are unused.
        ENDS: Whether there is an end marker.
        NUCLEUS: Whether `drawn` differs from `logits`.
        BLOCK: See `scan_blocks`.
        BLOCKS: At least `blocks`; a power of two.
        WIDTH: At least `width`; a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    writes = (tl.load(emits + row) != 0) & (slot >= 0) & (position >= 0) & (position < length)
    slot = tl.where(slot < 0, slot_count, slot)
    seed = tl.load(seeds + slot)
    temperature = tl.load(temperatures + slot)
    top, has_nan, masses = _masses(maxima, sums, row, blocks, BLOCKS)
    total = tl.sum(masses, 0)

    # The sampled token: first the block in which the cumulative distribution passes the uniform number, then the place in that block.
    drawn_top, drawn_total = top, total
    if NUCLEUS:
        drawn_top, _, masses = _masses(drawn_maxima, drawn_sums, row, blocks, BLOCKS)
        drawn_total = tl.sum(masses, 0)
    threshold = uniform(seed, position, TOKEN) * drawn_total
    block = _first_beyond(masses, threshold, BLOCKS)
    before = tl.sum(tl.where(tl.arange(0, BLOCKS) < block, masses, 0.0), 0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(drawn + row * drawn_stride + at, mask=at < size, other=float("-inf")).to(tl.float32)
    if not NUCLEUS:
        values = tl.div_rn(values, temperature)
    inside = _first_beyond(tl.exp(values - drawn_top).to(tl.float64), threshold - before, BLOCK)
    # For a row that is no distribution (NaN, plus infinity, or minus infinity only) the reference draws the last token.
    token = tl.where(drawn_total != drawn_total, size - 1, block * BLOCK + inside).to(tl.int64)

    if MIXES:
        strategy = tl.load(strategies + slot)
        k = tl.load(anchored + strategy, mask=strategy >= 0, other=0)
        head = tl.where(k > 0, _anchor(maxima, places, row, blocks, top, has_nan, BLOCKS), token)
        active = writes & (strategy >= 0)
        if ENDS:
            state = tl.load(progress + slot * (length + 1) + position, mask=writes, other=0).to(tl.int64)
            active = active & (state != last_state)
        gate = uniform(seed, position, GATE) < tl.load(rates + slot)
        mixes = active & gate & (tl.load(eligible + head) != 0)
        # Equations 7-9.
        each = tl.arange(0, WIDTH)
        used = each < tl.maximum(k, 1)
        kept = each < tl.where(mixes, tl.maximum(k, 1), 0)
        near = tl.load(neighbors + head * neighbors_stride + each - 1, mask=used & (each > 0), other=0).to(tl.int64)
        chosen = tl.where(each == 0, head, near)
        scores = tl.load(logits + row * logits_stride + chosen, mask=used, other=float("-inf")).to(tl.float32)
        scores = tl.div_rn(scores, temperature)
        parts = tl.exp(scores - tl.max(scores, 0))
        token = tl.where(mixes, head, token)
        step = slot * length + position
        tl.store(candidates + step * width + each, chosen.to(tl.int32), mask=kept)
        share = tl.where(k > 0, tl.div_rn(parts, tl.sum(parts, 0)), 1.0)
        tl.store(weights + step * width + each, share, mask=kept)
        tl.store(mixed + step, mixes, mask=writes)
        if ENDS:
            following = tl.load(transitions + state * transitions_stride + token, mask=writes, other=0)
            tl.store(progress + slot * (length + 1) + position + 1, following, mask=writes)

    own = tl.div_rn(tl.load(logits + row * logits_stride + token).to(tl.float32), temperature)
    # A total that is NaN means that the largest logit is infinite, or that one is NaN; the difference covers the rest.
    rest = tl.where(total == total, tl.log(total), 0.0).to(tl.float32)
    logprob = tl.where(has_nan, float("nan"), own - top - rest)
    tl.store(logprobs + slot * length + position, logprob, mask=writes)
    tl.store(tokens + row, token)
