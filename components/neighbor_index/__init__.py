"""Component `neighbor_index`."""
