"""What a run on the cluster is doing: status, logs, facts."""
