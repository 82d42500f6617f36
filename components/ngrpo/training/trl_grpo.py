"""TRL's GRPO trainer, imported without vLLM.

Rollouts come from our engines. Where vLLM is installed, the import of the trainer would import it for rollouts of its own: seconds, and
160 MB of every process. TRL is told that there is none for this import alone; later calls get the real answer.
"""

from trl import import_utils

_is_vllm_available = import_utils.is_vllm_available
import_utils.is_vllm_available = lambda min_version=None: False
try:
    from trl import GRPOTrainer
finally:
    import_utils.is_vllm_available = _is_vllm_available

__all__ = ["GRPOTrainer"]
