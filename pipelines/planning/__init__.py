"""What a run will do and why: nodes, keys, reasons, what it needs."""
