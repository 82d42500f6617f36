"""Component `sft_warm_start`."""
