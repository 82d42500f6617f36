"""The plan of a run: nodes, keys, reasons, and needed resources."""
