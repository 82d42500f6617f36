"""Whether a cluster can run the pipeline, and what is missing."""
