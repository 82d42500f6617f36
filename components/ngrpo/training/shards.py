"""Weights and optimizer of a sharded model on disk: each process writes what it holds, and any number of processes read it.

A file holds the shards of one process. Nothing is gathered, and as many processes as wrote them read each its own. Where the number has
changed, tensors are put together from all files: FSDP2 shards rows, so the shards in the order of the processes are the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ngrpo.errors import DataError

_WEIGHTS, _OPTIMIZER = "weights", "optimizer"

_Name = str | tuple[str, str]
"""Of a weight; or of a parameter and what an optimizer keeps of it."""


def are_in(checkpoint: Path) -> bool:
    """Whether a checkpoint consists of shards."""
    return next(checkpoint.glob(f"{_WEIGHTS}-*-of-*.pt"), None) is not None


def save(model: nn.Module, optimizer: Optimizer, checkpoint: Path) -> None:
    """Write what this process holds of a model and its optimizer; tied weights once.

    Args:
        model: The sharded model.
        optimizer: Its optimizer.
        checkpoint: Directory, of all processes or of those of a node.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    _write(checkpoint, _WEIGHTS, _weights(model))
    state = {
        (name, key): value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    _write(checkpoint, _OPTIMIZER, state, groups=groups)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Set the weights of a model, sharded or not, from a checkpoint.

    Raises:
        DataError: Shards are missing, or are those of another model.
    """
    shards = _Shards.open(checkpoint, _WEIGHTS, model)
    weights = _weights(model)
    if weights.keys() != shards.values.keys():
        name = min(weights.keys() ^ shards.values.keys())
        raise DataError(
            f"{checkpoint}: of another model: only one of both has weights {name!r}; remove it and run again"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(shards.read(name, tensor))


def load_optimizer(model: nn.Module, optimizer: Optimizer, checkpoint: Path) -> None:
    """Set the state of a new optimizer from a checkpoint.

    Raises:
        DataError: Shards are missing, or what the optimizer keeps cannot be divided among another number of processes.
    """
    shards = _Shards.open(checkpoint, _OPTIMIZER, model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept: dict[str, list[str]] = {}
    for known in shards.values:
        if isinstance(known, tuple):  # as all of an optimizer's are
            kept.setdefault(known[0], []).append(known[1])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: shards.read((names[parameter], key), parameter) for key in kept[names[parameter]]}
        for number, parameter in enumerate(parameters)
        if names[parameter] in kept
    }
    # The optimizer's own has the numbers of the parameters of each group.
    groups = [
        own | saved
        for own, saved in zip(optimizer.state_dict()["param_groups"], shards.files[0]["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@dataclass(frozen=True)
class _Shards:
    """The files of one kind in a checkpoint.

    Attributes:
        checkpoint: The directory.
        count: Processes that wrote them.
        files: What they hold, in the order of the processes; or what this process wrote, where it can do with that.
    """

    checkpoint: Path
    count: int
    files: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, checkpoint: Path, kind: str, model: nn.Module) -> _Shards:
        """Map the files into memory that a model needs."""
        count = max((int(path.stem.rpartition("-")[2]) for path in checkpoint.glob(f"{kind}-*-of-*.pt")), default=1)
        processes: Sequence[int] = range(count)
        if count == PartialState().num_processes and any(isinstance(one, DTensor) for one in model.parameters()):
            processes = [PartialState().process_index]
        paths = [_path(checkpoint, kind, process, count) for process in processes]
        if missing := [path.name for path in paths if not path.exists()]:
            raise DataError(f"{checkpoint}: {missing[0]} is missing; remove the checkpoint and run again")
        return cls(
            checkpoint, count, [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths]
        )

    @property
    def values(self) -> Mapping[_Name, Any]:
        """What one process wrote, by name."""
        values: Mapping[_Name, Any] = self.files[0]["values"]
        return values

    def read(self, name: _Name, like: Tensor) -> Any:
        """Return a value; a tensor that is sharded, laid out as another of its shape is.

        Raises:
            DataError: Each process had another.
        """
        value = self.values[name]
        if name not in self.files[0]["sharded"]:
            # A scalar, or a buffer, is the same in all processes.
            if isinstance(name, tuple) and isinstance(value, Tensor) and value.numel() > 1 and len(self.files) > 1:
                raise DataError(
                    f"{self.checkpoint}: this optimizer's {name[1]!r} cannot be divided anew: train with {self.count} processes, "
                    "which saved it, or remove the checkpoint"
                )
            return value.clone() if isinstance(value, Tensor) else value
        if isinstance(like, DTensor) and len(self.files) == 1:
            return DTensor.from_local(
                value.to(like.device, copy=True),
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
        whole = torch.cat([file["values"][name] for file in self.files]).to(like.device)
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, tied ones once, and the buffers that are part of the weights.

    Parameters that are frozen, below adapters, are those that training starts from.
    """
    state = model.state_dict(keep_vars=True)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return trained | {name: value for name, value in model.named_buffers() if name in state}


def _write(checkpoint: Path, kind: str, values: Mapping[Any, Any], **more: Any) -> None:
    """Write what this process holds of values by name, and which of them are shards."""
    held = {name: _held(value) if isinstance(value, Tensor) else value for name, value in values.items()}
    sharded = [name for name, value in values.items() if isinstance(value, DTensor)]
    path = _path(checkpoint, kind, PartialState().process_index, PartialState().num_processes)
    torch.save({"values": held, "sharded": sharded} | more, path)


def _held(value: Tensor) -> Tensor:
    """Return what this process holds of a tensor, without the padding after it, which would be saved too."""
    local = (value.to_local() if isinstance(value, DTensor) else value).detach()
    return local if local.untyped_storage().nbytes() == local.nbytes else local.clone()


def _path(checkpoint: Path, kind: str, process: int, count: int) -> Path:
    return checkpoint / f"{kind}-{process}-of-{count}.pt"
