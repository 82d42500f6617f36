"""`ngrpo.mixing.counter` in Triton, bit for bit."""

import triton
import triton.language as tl


@triton.jit
def _avalanche(x):
    # The reference masks int64 products to 32 bits; products of uint32 wrap anyway.
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def uniform(seed, position, STREAM: tl.constexpr):
    """Return a float64 uniform number in [0, 1): see `ngrpo.mixing.counter.uniform`.

    Args:
        seed: int64.
        position: int64.
        STREAM: One of the streams there.
    """
    bits = _avalanche(seed.to(tl.uint32) ^ (0x9E3779B9 + STREAM))
    bits = _avalanche(bits ^ (seed >> 32).to(tl.uint32))
    bits = _avalanche(bits + position.to(tl.uint32))
    return bits.to(tl.float64) * 2.3283064365386963e-10  # 2**-32, which float32 represents exactly too
