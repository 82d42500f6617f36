"""The training loop of transformers with two fixes: no step beyond the last, and a stop when training diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ngrpo.errors import TrainingError
from ngrpo.training.sharded_trainer import ShardedTrainer


class SoundLoop(ShardedTrainer):
    """A trainer that makes exactly the requested steps, and stops when numbers are no longer finite.

    Put it before TRL's trainer among the bases, and set `logging_nan_inf_filter=False`: the filter would hide a loss that is not finite.
    """

    section: ClassVar[str]
    """Section of the configuration with the learning rate, for the error."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from its last step, `Trainer` would enter an epoch and check the number of steps only after one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Called once per step, before the weights change, so that they stay those of the step before.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.require_finite(self.state.global_step + 1, {"loss": self._tr_loss, "gradient norm": norm})
        return norm

    def require_finite(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Stop if a value is not finite.

        Args:
            step: The step that it is of, for the error.
            values: By name.

        Raises:
            TrainingError: One is not. The checkpoints saved before stay.
        """
        for name, value in values.items():
            number = float(value)
            if not math.isfinite(number):
                raise TrainingError(
                    f"step {step}: the {name} is {number}: training has diverged with {self.section}.learning_rate="
                    f"{self.args.learning_rate:g}, and another try would at the same step; set a smaller learning rate and run again"
                )
