"""Warm start and N-GRPO training on TRL's trainers."""
