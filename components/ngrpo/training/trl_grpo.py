"""TRL's GRPO trainer, imported without vLLM.

Rollouts come from our engines. Where vLLM is installed, the import of the trainer would import it for rollouts of its own: seconds, and
160 MB of every process. So TRL's module for them is imported when it is first used. Nothing else of TRL or vLLM is changed:
`trl.GRPOTrainer(use_vllm=True)` works in this process as in any other.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_GENERATION = "trl.generation.vllm_generation"


def _vllm_generation(*args: Any, **kwargs: Any) -> Any:
    """Stand for TRL's `VLLMGeneration` until the first call, which imports the class and puts it in its place."""
    from trl.generation.vllm_generation import VLLMGeneration
    from trl.trainer import grpo_trainer

    grpo_trainer.VLLMGeneration = VLLMGeneration
    return VLLMGeneration(*args, **kwargs)


if "trl.trainer.grpo_trainer" in sys.modules or _GENERATION in sys.modules:
    from trl.trainer.grpo_trainer import GRPOTrainer
else:
    _stand_in = ModuleType(_GENERATION)
    _stand_in.VLLMGeneration = _vllm_generation  # type: ignore[attr-defined]
    sys.modules[_GENERATION] = _stand_in
    try:
        from trl.trainer.grpo_trainer import GRPOTrainer
    finally:
        del sys.modules[_GENERATION]

__all__ = ["GRPOTrainer"]
