"""Component `deploy`."""
