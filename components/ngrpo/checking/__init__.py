"""What a run would stumble over, found within seconds: no training, no GPU, no weights."""
