"""The order in which training comes to its prompts: by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trl.trainer.utils import RepeatSampler

from ngrpo.data.problem import SET, WEIGHT
from ngrpo.rollout.seeds import request_seed
from ngrpo.training.training_sets import TrainingSets


class PromptSampler(RepeatSampler):
    """TRL's sampler with an order that depends only on the epoch, so that a run resumed in a later epoch sees the same order.

    It reads the epoch itself, because accelerate's `set_epoch` does not reach the shared sampler of a resumed epoch.
    """

    def __init__(self, epoch: Callable[[], int], sets: TrainingSets | None, **kwargs: Any):
        super().__init__(**(kwargs if sets is None else kwargs | {"shuffle": False}))
        self._epoch = epoch
        self._sets = sets

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of the current epoch."""
        if self._sets is not None:
            order = self._sets.order(self.seed, self._epoch())
            yield from (order[place] for place in super().__iter__())
            return
        if self.shuffle:
            self.generator.manual_seed(request_seed(self.seed, self._epoch()))
        yield from super().__iter__()


def sets_of(dataset: Any) -> TrainingSets | None:
    """Return the sets of a combined data set; none for a single one."""
    columns = getattr(dataset, "column_names", None) or ()
    return TrainingSets.of(dataset[SET][:], dataset[WEIGHT][:]) if {SET, WEIGHT} <= {*columns} else None
