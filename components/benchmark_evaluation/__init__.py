"""Component `benchmark_evaluation`."""
