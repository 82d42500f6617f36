"""Rows of like length together: what a pass pads is little, and processes that wait for each other have rows of like length at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

MicroBatch = dict[str, Tensor | None]
"""Tensors of some rows by TRL's names: `[B, ...]`, with columns second. A tensor without dimensions is one for the whole batch."""

SUMS_OVER_ROWS = frozenset({"grpo", "sapo", "dr_grpo", "cispo", "dapo", "vespo", "luspo"})
"""Loss types of TRL that are a sum over the rows of an optimizer step, each divided by what does not depend on its micro-batch.

`bnpo` is none of them: it divides by the tokens of the micro-batch.
"""


@dataclass(frozen=True)
class Columns:
    """The columns of some rows that hold a token of any of them.

    Attributes:
        start: Columns of padding on the left, which are left out.
        end: Where the padding on the right begins.
        kept: Columns of the completions among those between.
    """

    start: int
    end: int
    kept: int

    @classmethod
    def of(cls, attention_mask: Tensor, completion_columns: int, multiple: int = 1) -> Columns:
        """Find them.

        Args:
            attention_mask: `[B, P + C]`, prompts padded on the left and completions on the right.
            completion_columns: `C`.
            multiple: Padding is left out in multiples of this.
        """
        width = attention_mask.shape[1]
        used = attention_mask.any(dim=0).nonzero()
        first, last = (int(used[place]) for place in (0, -1))
        # One column of completions stays: their rows may all be left out of the loss, and so be masked.
        padded = width - max(last + 1, width - completion_columns + 1)
        end = width - padded // multiple * multiple
        return cls(first // multiple * multiple, end, completion_columns - (width - end))


def by_length(lengths: Tensor) -> Tensor:
    """Return the order of rows from the longest to the shortest; int64 `[B]`.

    The longest come first, so that what does not fit into memory fails at once.
    """
    return torch.argsort(lengths, descending=True, stable=True)


def sorted_micro_batches(
    micro_batches: Sequence[MicroBatch], window: int, accelerator: Accelerator
) -> list[MicroBatch]:
    """Sort rows by length within each optimizer step, over all processes.

    The micro-batches that processes go through together have rows of like length: with parameters that are sharded, each waits for
    the longest. Rows never leave their optimizer step.

    Args:
        micro_batches: Of one rollout batch, in the order in which they are trained on; every process has as many, of as many rows.
        window: Micro-batches after which an optimizer step may end; divides their number.
        accelerator: Of the processes.
    """
    if window == 1:
        return list(micro_batches)
    return [
        batch
        for start in range(0, len(micro_batches), window)
        for batch in _sorted(micro_batches[start : start + window], accelerator)
    ]


def _sorted(micro_batches: Sequence[MicroBatch], accelerator: Accelerator) -> Iterator[MicroBatch]:
    rows = {
        name: _of_all_processes(name, torch.cat([_present(batch[name]) for batch in micro_batches]), accelerator)
        for name, value in micro_batches[0].items()
        if value is not None and value.ndim
    }
    order = by_length(rows["prompt_mask"].sum(dim=1) + rows["completion_mask"].sum(dim=1))
    shares = order.view(len(micro_batches), accelerator.num_processes, -1)[:, accelerator.process_index]
    for batch, share in zip(micro_batches, shares, strict=True):
        yield {name: rows[name][share] if name in rows else value for name, value in batch.items()}


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "micro-batches of one rollout batch have the same tensors"
    return value


def _of_all_processes(name: str, rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the rows of all processes, one process after another."""
    kind = rows.dtype
    if kind == torch.bool:  # accelerate's padding would make numbers of it, on those processes alone that pad
        rows = rows.byte()
    if rows.ndim > 1:
        rows = accelerator.pad_across_processes(rows, dim=1, pad_first=name.startswith("prompt_"))
    gathered: Tensor = accelerator.gather(rows)
    return gathered.to(kind)
