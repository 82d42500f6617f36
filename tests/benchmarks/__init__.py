"""Benchmarks: what is slow or fast is measured here, against a named peer in the same run, never in a timed test."""
