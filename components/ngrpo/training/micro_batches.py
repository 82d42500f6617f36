"""Group rows of similar length, so that passes need little padding and processes that wait for each other take equally long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

MicroBatch = dict[str, Tensor | None]
"""Tensors of some rows by TRL's names: `[B, ...]`, with columns second. A tensor without dimensions belongs to the whole batch."""

SUMS_OVER_ROWS = frozenset({"grpo", "sapo", "dr_grpo", "cispo", "dapo", "vespo", "luspo"})
"""Loss types of TRL that are a sum over the rows of an optimizer step, each divided by what does not depend on its micro-batch.

`bnpo` is none of them: it divides by the tokens of the micro-batch.
"""


@dataclass(frozen=True)
class Columns:
    """The columns of some rows in which at least one row has a token.

    Attributes:
        start: Number of padding columns on the left, which are dropped.
        end: First padding column on the right.
        kept: Number of completion columns in between.
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
        # Keep one column of completions, because all rows may be masked out of the loss.
        padded = width - max(last + 1, width - completion_columns + 1)
        end = width - padded // multiple * multiple
        return cls(first // multiple * multiple, end, completion_columns - (width - end))


def by_length(lengths: Tensor) -> Tensor:
    """Return the order of rows from the longest to the shortest; int64 `[B]`.

    The longest come first, so that a lack of memory shows at once.
    """
    return torch.argsort(lengths, descending=True, stable=True)


def sorted_micro_batches(
    micro_batches: Sequence[MicroBatch], window: int, accelerator: Accelerator
) -> list[MicroBatch]:
    """Sort rows by length within each optimizer step, over all processes.

    Micro-batches that processes work on at the same time have rows of similar length, because with sharded parameters each process
    waits for the longest. Rows never leave their optimizer step.

    Args:
        micro_batches: Micro-batches of one rollout batch in training order; every process has equally many, of equal size.
        window: Micro-batches after which an optimizer step may end; divides their number.
        accelerator: The processes' accelerator.
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
    if kind == torch.bool:  # accelerate's padding would turn it into numbers, but only on processes that pad
        rows = rows.byte()
    if rows.ndim > 1:
        rows = accelerator.pad_across_processes(rows, dim=1, pad_first=name.startswith("prompt_"))
    gathered: Tensor = accelerator.gather(rows)
    return gathered.to(kind)
