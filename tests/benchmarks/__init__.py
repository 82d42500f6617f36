"""Benchmarks: speed is measured here, against a named peer in the same run, and never in a timed test."""
