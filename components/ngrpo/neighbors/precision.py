"""Matrix products in the float32 of IEEE 754, whatever is set around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Within, products of float32 matrices are neither cast by autocast nor rounded to TF32 or bfloat16 by a faster kernel.

    The bounds of `ngrpo.neighbors.metrics` hold for IEEE arithmetic alone; training in bfloat16 or with TF32 goes on around them.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # its stub does not know it
    before = [backend.fp32_precision for backend in backends]
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        for backend, precision in zip(backends, before, strict=True):
            stack.callback(setattr, backend, "fp32_precision", precision)
            backend.fp32_precision = "ieee"
        yield
