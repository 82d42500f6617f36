"""Component `scheduled_run`."""
