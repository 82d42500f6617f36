"""Status, logs and facts of runs on a cluster."""
