"""Measuring models: grading, statistics, diversity, samples and results."""
