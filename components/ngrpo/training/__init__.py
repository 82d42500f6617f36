"""Warm start and N-GRPO training on TRL's trainers."""

from trl import import_utils

# Rollouts come from our engines. TRL would import vLLM for its own wherever it is installed: seconds, and 160 MB of every process.
import_utils.is_vllm_available = lambda min_version=None: False
