"""A stage on several nodes: creates and watches the TrainJob that does the work."""
