"""Warm start and N-GRPO training on TRL's trainers."""

import warnings

# TRL's own use of vLLM, which is none of ours; a stage's last line would be this one for as long as it starts.
warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
