"""Find problems of a configuration within seconds, before a run: no training, no GPU, no weights."""
