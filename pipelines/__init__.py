"""The pipeline, its recipes and the command line."""
