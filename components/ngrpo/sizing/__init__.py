"""Compute the needs of each stage from the configuration, before a run: GPU memory, pod memory, scratch space, time."""
