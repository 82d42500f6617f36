"""The first kernel: everything that a step needs from the logits, in one pass over them in their own type."""

import triton
import triton.language as tl


@triton.jit
def scan_blocks(
    logits,
    logits_stride,
    slots,
    temperatures,
    maxima,
    sums,
    places,
    size,
    slot_count,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduce one block of one row, scaled as in equation 2.

    The grid is rows x blocks. NaN counts as the largest number, and the first of equal numbers wins, both as in `torch.argmax`.

    Args:
        logits: `[B, size]` of any floating-point type, rows `logits_stride` apart.
        logits_stride: See `logits`.
        slots: integer `[B]`, -1 for rows of other requests.
        temperatures: float32 `[slot_count + 1]`, by slot; the last one is for other requests.
        maxima: float32 `[B, blocks]`, written: largest scaled logit, or NaN.
        sums: float32 `[B, blocks]`, written: sum of exp(scaled logit - maximum).
        places: int32 `[B, blocks]`, written: token of the maximum.
        size: V.
        slot_count: Number of slots of the tables.
        SCALED: Whether the logits are already scaled.
        BLOCK: Logits of a block; a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = tl.load(logits + row * logits_stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    if not SCALED:
        slot = tl.load(slots + row).to(tl.int64)
        # IEEE division: Triton's default division is approximate, and could make or break a tie.
        values = tl.div_rn(values, tl.load(temperatures + tl.where(slot < 0, slot_count, slot)))
    unordered = values != values
    ordered = tl.where(unordered, float("-inf"), values)
    top = tl.max(ordered, 0)
    first_nan = tl.min(tl.where(unordered, at, size), 0)
    first_top = tl.min(tl.where(inside & (ordered == top), at, size), 0)
    # A block of minus infinities has a sum of zero, not of exp(NaN).
    total = tl.sum(tl.exp(values - tl.where(top == float("-inf"), 0.0, top)), 0)
    into = row * tl.num_programs(1) + block
    tl.store(maxima + into, tl.where(first_nan < size, float("nan"), top))
    tl.store(sums + into, total)
    tl.store(places + into, tl.where(first_nan < size, first_nan, first_top))
