"""Tensors between host and device without making either wait for the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device; the host goes on at once.

    A copy from memory that is not pinned would make the host wait for all earlier work of the device.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class ToHost:
    """Tensors that are being copied to the host. They must be copies themselves, because the device may overwrite their sources."""

    def __init__(self, tensors: Sequence[Tensor], stream: torch.cuda.Stream | None):
        """Start the copies.

        Args:
            tensors: On one device; kept until they have arrived.
            stream: Stream of the copies, beside the device's work; none on a processor, where the tensors are on the host already.
        """
        self._host, self._arrived = list(tensors), None
        if stream is None:
            return
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._host = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self._arrived = stream.record_event()
        for tensor in tensors:
            tensor.record_stream(stream)  # its memory is not reused before it was copied

    def wait(self) -> list[Tensor]:
        """Wait for the tensors and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
