"""The neighbor index: for every token its most similar tokens in the embedding matrix."""
