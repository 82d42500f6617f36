"""Component `champion_run`."""
