"""Cost of a decode step on a device: launches, bytes, and waits for the host, counted on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

FROM_HOST = {"aten.lift_fresh", "aten.scalar_tensor"}
WAITING = {
    "aten._local_scalar_dense",
    "aten._unique2",
    "aten.equal",
    "aten.masked_select",
    "aten.nonzero",
    "aten.repeat_interleave",
    "aten.unique_consecutive",
}
"""Operations whose result, or the size of it, the host must know."""
NO_LAUNCH = {"aten.empty", "aten.empty_like", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.lift_fresh"}
LOOK_UPS = {"aten.embedding", "aten.gather", "aten.index", "aten.index_select"}
"""Operations that read no more of their first argument than they return."""


@dataclass
class Traffic:
    """What was counted.

    Attributes:
        launches: Names of what a device would launch.
        bytes: Read and written.
        faults: Tensors made on the host, and operations that wait for the device.
        largest: Elements of the largest tensor that was made.
    """

    launches: list[str] = field(default_factory=list)
    bytes: int = 0
    faults: list[str] = field(default_factory=list)
    largest: int = 0


class _Counting(TorchDispatchMode):
    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket)
        reads, writes = _tensors((args, kwargs)), _tensors(result)
        by_mask = name.startswith("aten.index") and any(each.dtype == torch.bool for each in _tensors(args[1:2]))
        if name in FROM_HOST | WAITING or by_mask:
            self.traffic.faults.append(name)
        if not function.is_view and name not in NO_LAUNCH:
            self.traffic.launches.append(name)
            if name in LOOK_UPS:
                reads = [*reads[1:], *writes]
            elif name.startswith("aten.index_put"):
                reads, writes = reads[1:], reads[1:]
            self.traffic.bytes += sum(each.numel() * each.element_size() for each in [*reads, *writes])
        if not function.is_view and not function._schema.is_mutable:
            self.traffic.largest = max([self.traffic.largest, *(each.numel() for each in writes)])
        return result


def _tensors(values) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count operations of torch, and kernels under Triton's interpreter by what they load and store."""
    traffic = Traffic()
    run, load, store = (
        interpreter.GridExecutor.__call__,
        interpreter.InterpreterBuilder.create_masked_load,
        interpreter.InterpreterBuilder.create_masked_store,
    )

    def launch(self, *args, **kwargs):
        traffic.launches.append(self.fn.__name__)
        with _disable_current_modes():  # what the interpreter itself does with tensors is not the kernel's
            return run(self, *args, **kwargs)

    def loading(self, pointers, mask, other, *args):
        loaded = load(self, pointers, mask, other, *args)
        traffic.bytes += int(mask.data.sum()) * loaded.data.dtype.itemsize
        return loaded

    def storing(self, pointers, value, mask, *args):
        traffic.bytes += int(mask.data.sum()) * value.data.dtype.itemsize
        return store(self, pointers, value, mask, *args)

    builder = interpreter.InterpreterBuilder
    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        mock.patch.object(builder, "create_masked_load", loading),
        mock.patch.object(builder, "create_masked_store", storing),
        _Counting(traffic),
    ):
        yield traffic
