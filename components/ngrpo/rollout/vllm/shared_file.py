"""Pass tensors to vLLM's processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors.torch import save_file
from torch import Tensor

_HEADER = 2**20
"""Upper bound on a file's bytes besides its tensors."""


@contextmanager
def shared_tensors(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Put tensors into a file that other processes of this machine can read, in memory where there is room for it."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    # A pod has 64 MB of shared memory by default.
    place = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > size + _HEADER else None
    with tempfile.TemporaryDirectory(prefix="ngrpo-", dir=place) as directory:
        path = f"{directory}/tensors.safetensors"
        save_file(tensors, path)
        yield path
