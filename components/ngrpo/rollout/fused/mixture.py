"""The third kernel: overwrite the embeddings of tokens from mixed steps with the mixtures."""

import triton
import triton.language as tl


@triton.jit
def mix_rows(
    output,
    output_stride,
    rows,
    vectors,
    vectors_stride,
    slots,
    positions,
    strategies,
    mixed,
    candidates,
    weights,
    anchored,
    length,
    width,
    size,
    INDEXED: tl.constexpr,
    LOOKED_UP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Equation 10 for one block of one token, in float32; the embedding of a token from an unmixed step is not changed.

    The grid is tokens x blocks of the dimension.

    Args:
        output: `[n, size]`, rows `output_stride` apart; written.
        output_stride: See `output`.
        rows: integer `[T]`, row of each token in `output`, used if `INDEXED`; otherwise `output` has one row per token.
        vectors: The embedding matrix `[V, size]`, or, if `LOOKED_UP`, embeddings of the candidates `[T * width, size]`.
        vectors_stride: Stride between rows of `vectors`.
        slots: integer `[T]`, -1 for tokens of other requests.
        positions: integer `[T]`, positions in their responses.
        strategies: See `Tables`, also for all arguments up to `weights`.
        mixed: See `strategies`.
        candidates: See `strategies`.
        weights: See `strategies`.
        anchored: See `Mixing`.
        length: Number of positions of the tables.
        width: Number of candidates of the tables.
        size: Dimension of an embedding.
        INDEXED: See `rows`.
        LOOKED_UP: See `vectors`.
        BLOCK: Elements of a block; a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    known = (slot >= 0) & (position >= 0) & (position < length)
    step = slot * length + position
    if tl.load(mixed + step, mask=known, other=0) != 0:
        k = tl.maximum(tl.load(anchored + tl.load(strategies + slot)), 1)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for each in range(k):
            source = token * width + each
            if not LOOKED_UP:
                source = tl.load(candidates + step * width + each).to(tl.int64)
            vector = tl.load(vectors + source * vectors_stride + at, mask=inside, other=0.0).to(tl.float32)
            total += vector * tl.load(weights + step * width + each)
        into = token
        if INDEXED:
            into = tl.load(rows + token).to(tl.int64)
        tl.store(output + into * output_stride + at, total.to(output.dtype.element_ty), mask=inside)
