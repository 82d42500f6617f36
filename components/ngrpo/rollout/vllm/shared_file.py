"""Tensors on their way to vLLM's processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def shared_tensors(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Put tensors into a file that other processes of this machine can read, in memory where the platform has it."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="ngrpo-", dir=place) as directory:
        path = f"{directory}/tensors.safetensors"
        save_file(tensors, path)
        yield path
