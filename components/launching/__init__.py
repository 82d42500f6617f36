"""A stage on several nodes: makes and follows the TrainJob whose pods do the work."""
