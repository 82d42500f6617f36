"""A run on this machine: runner, services, workspace, progress."""
