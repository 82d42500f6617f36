"""What a stage needs: memory of a GPU and of its pod, scratch, time; computed from the configuration before anything runs."""
